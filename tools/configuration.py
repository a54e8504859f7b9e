"""Writes docs/configuration.md from predictors/settings.py, one row per knob. Knows none by name.

`python tools/configuration.py` writes the file, `--check` says whether it is current. The sentence
of a row is the string under the field in the source, so code and page cannot disagree.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import fields
from pathlib import Path

from predictors import settings
from predictors.settings import ALIASES, CHOICES, LEAST, PREFIX, Settings

PAGE = Path(__file__).resolve().parents[1] / "docs/configuration.md"
HEAD = """# Configuration

<!-- Written by `make docs` from predictors/settings.py; edit that file. -->

Every knob is an environment variable, read once at start. A value that can't be used and a
`PREDICTORS_*` name that does not exist end the process with a message that names it. `HOST`, `PORT`
and `GRPC_PORT` are short for `PREDICTORS_SERVER_HOST`, `..._PORT`, `..._GRPC_PORT`; the long name
wins, and the flags `--host`, `--port`, `--grpc-port` of `python -m predictors serve` win over all.
"""


def sentences(group: str) -> dict[str, str]:
    """Field name to the string beneath it, and the class docstring under an empty name."""
    source = ast.parse(Path(settings.__file__).read_text(encoding="utf-8"))
    body = next(n for n in source.body if isinstance(n, ast.ClassDef) and n.name == group).body
    found, last = {}, ""
    for node in body:
        if isinstance(node, ast.AnnAssign):
            last = ast.unparse(node.target)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[last] = " ".join(str(node.value.value).split())
    return found


def bounds(name: str, value: object) -> str:
    """What a value may be, in words."""
    if name in CHOICES:
        return ", ".join(f"`{choice}`" for choice in CHOICES[name])
    if isinstance(value, bool):
        return "`true`, `false`"
    if isinstance(value, int | float):
        return f"{'whole number' if isinstance(value, int) else 'number'} >= {LEAST.get(name, 0)}"
    return "text"


def shown(value: object) -> str:
    """A default as one would write it."""
    return (
        f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else "empty"
    )


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for group in fields(Settings):
        values = getattr(Settings(), group.name)
        words = sentences(type(values).__name__)
        lines += [
            f"## {group.name}",
            "",
            words[""],
            "",
            "| variable | default | takes | |",
            "|---|---|---|---|",
        ]
        for knob in fields(values):
            name = f"{PREFIX}_{group.name}_{knob.name}".upper()
            value = getattr(values, knob.name)
            also = f" Also `{ALIASES[name]}`." if name in ALIASES else ""
            lines.append(
                f"| `{name}` | {shown(value)} | {bounds(name, value)} | {words[knob.name]}{also} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Write or check the page; returns the exit code."""
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.read_text(encoding="utf-8") == page() else 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
