"""Findings of a fuzzer, a smaller input that shows the same, and the command that replays it."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = f"{Path(__file__).resolve().parents[2]}/"
MAX_TRIES = 3000  # inputs that one minimisation may check
MAX_PRINTED = 6000


@dataclass(frozen=True)
class Finding:
    """`kind` is `crash`, `hang`, `error` (an exception that is not documented), `disagreement`
    (`Fault` and readers that differ) or `status`."""

    part: str
    kind: str
    seed: int
    case: int
    message: str
    raw: bytes

    def report(self) -> str:
        replay = f"python -m tests.fuzz replay {self.part} {base64.b64encode(self.raw).decode()}"
        return (
            f"{self.part}: {self.kind} with seed {self.seed}, case {self.case}: {self.message}\n"
            f"  minimised input: {self.raw!r}\n  replay: {replay}"
        )

    def as_json(self) -> dict[str, Any]:
        """Its fields; files of the repository have no path of this machine."""
        message = self.message.replace(ROOT, "")
        return asdict(self) | {"message": message, "raw": base64.b64encode(self.raw).decode()}


def printed_about(console: str, title: str) -> str:
    """Everything that schemathesis printed about its failures or errors of one title, at most
    `MAX_PRINTED` characters of it. Its report has no more than the title and a count."""
    sections = re.split(r"^=+ (?:FAILURES|ERRORS|SUMMARY) =+$", console, flags=re.MULTILINE)[1:]
    blocks = [
        block
        for section in sections
        for block in re.split(r"^(?=_+ .+ _+$)", section, flags=re.MULTILINE)
        if re.search(rf"^(?:- \w+ )?{re.escape(title)}$", block, re.MULTILINE)
    ]
    return "\n".join(blocks)[:MAX_PRINTED].strip()


def finding_of(fields: dict[str, Any]) -> Finding:
    return Finding(**fields | {"raw": base64.b64decode(fields["raw"])})


def minimised(raw: bytes, shows: Callable[[bytes], bool]) -> bytes:
    """A smaller input for which `shows` holds too: parts are left out as long as it does."""
    tries, size = 0, max(1, len(raw) // 2)
    while size and tries < MAX_TRIES:
        at, is_smaller = 0, False
        while at < len(raw) and tries < MAX_TRIES:
            tries += 1
            less = raw[:at] + raw[at + size :]
            if shows(less):
                raw, is_smaller = less, True
            else:
                at += size
        if size == 1 and not is_smaller:
            break
        size = size if is_smaller and size == 1 else size // 2
    return raw
