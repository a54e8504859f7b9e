"""Paths of fields, such as `messages[0].content[1].text`, within a parsed JSON body."""

from __future__ import annotations

import re
from typing import Any


def is_there(path: str, body: Any, *, may_lack: bool) -> bool:
    """True for the path of a value; with `may_lack` also for one that its object lacks."""
    keys = re.findall(r"\[\d+\]|[^.\[\]]+", path)
    for i, key in enumerate(keys):
        if key.startswith("["):
            if not isinstance(body, list) or int(key[1:-1]) >= len(body):
                return False
            body = body[int(key[1:-1])]
        elif not isinstance(body, dict):
            return False
        elif key not in body:
            return may_lack and i == len(keys) - 1
        else:
            body = body[key]
    return True
