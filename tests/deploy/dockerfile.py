"""Reads the Dockerfile and .dockerignore into stages and patterns."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Stage:
    """One FROM with what follows: `(instruction, the rest of its logical line)`."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def of(self, *instructions: str) -> list[str]:
        """The steps of some kinds, without their first word."""
        return [rest for instruction, rest in self.steps if instruction in instructions]

    @property
    def sources(self) -> list[str]:
        """Paths that are copied from the build's folder, not from another stage."""
        copies = [rest.split() for rest in self.of("COPY", "ADD") if "--from=" not in rest]
        return [source.rstrip("/") for words in copies for source in words[:-1]]

    @property
    def others(self) -> list[str]:
        """The stages that are copied from."""
        return [name for rest in self.of("COPY") for name in re.findall(r"--from=(\S+)", rest)]


def read_stages(path: Path = ROOT / "Dockerfile") -> tuple[dict[str, str], list[Stage]]:
    """The arguments before the first FROM, by name, and the stages in order."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in text.replace("\\\n", " ").splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(base, name))
        elif instruction and stages:
            stages[-1].steps.append((instruction, rest))
        elif instruction == "ARG":
            name, _, value = rest.partition("=")
            arguments[name] = value
    return arguments, stages


def is_sent(path: str, patterns: list[str]) -> bool:
    """True if a file of the repository reaches the build: the last pattern that fits decides."""
    sent = True
    for pattern in patterns:
        wanted = pattern.startswith("!")
        if _expression(pattern.removeprefix("!")).fullmatch(path):
            sent = wanted
    return sent


def _expression(pattern: str) -> re.Pattern[str]:
    """Docker's patterns: `*` within a name, `**` across folders; a folder means all in it."""
    parts = re.split(r"(\*\*/|\*\*|\*)", pattern)
    meanings = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    translated = [meanings.get(part) or _bracketed(part) for part in parts]
    return re.compile("".join(translated) + "(?:/.*)?")


def _bracketed(text: str) -> str:
    """Literal text, but for a set of characters such as `[cod]`."""
    pieces = re.split(r"(\[[^]]+\])", text)
    return "".join(piece if piece.startswith("[") else re.escape(piece) for piece in pieces)
