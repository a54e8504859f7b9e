"""Shared by the programs of this folder: they ask, and print each answer or failure as JSON.

They run in an environment of their own (`requirements.txt`), where `predictors` is not installed.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

URL = sys.argv[1] if len(sys.argv) > 1 else ""
QUESTION = "Describe this picture."
LISTING = "List the shapes as JSON."
COUNTING = "How many shapes are there?"
MODEL, KEY = "qwen-vl", "none"
TOKENS = 24
CALL_TOKENS = 160  # of a call, or of an answer in JSON
LONG = "a red circle and a blue square " * 4000
TIMEOUT_S = 300.0


def base_url() -> str:
    """Where OpenAI's clients find the server."""
    return f"{URL}/v1"


def picture() -> bytes:
    return Path(sys.argv[2]).read_bytes()


def data_url() -> str:
    return "data:image/png;base64," + base64.b64encode(picture()).decode()


def messages() -> list[dict[str, Any]]:
    """OpenAI's messages with a picture and a question."""
    parts = [
        {"type": "text", "text": QUESTION},
        {"type": "image_url", "image_url": {"url": data_url()}},
    ]
    return [{"role": "user", "content": parts}]


def run(cases: Mapping[str, Callable[[], Any]]) -> None:
    """Print the result of each case, or the classes and text of what it raised."""
    found: dict[str, Any] = {}
    for name, ask in cases.items():
        try:
            found[name] = ask()
        except Exception as error:  # noqa: BLE001 - the test says which it expects
            classes = [kind.__name__ for kind in type(error).__mro__]
            code = getattr(error, "code", None)
            found[name] = {"raised": classes, "text": str(error)[:500], "code": code}
    sys.stdout.write("\n" + json.dumps(found) + "\n")
