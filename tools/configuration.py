"""Generates docs/configuration.md from predictors/settings: one entry per setting. Its text is
the string below the field in the source.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from predictors.settings import ALIASES, Settings, SettingsGroup, bounds_of, variable_name

PAGE = Path(__file__).resolve().parents[1] / "docs/configuration.md"
WIDTH = 120
HEAD = """# Configuration

<!-- Written by `make docs` from predictors/settings; edit those files. -->

Every setting is an environment variable that is read once, at the start. A value that can't be
used, or a `PREDICTORS_*` name that does not exist, ends the process with a message that names it.
`HOST`, `PORT` and `GRPC_PORT` are short for `PREDICTORS_SERVER_HOST`, `..._PORT` and
`..._GRPC_PORT`. The long name wins over the short one, and the flags `--host`, `--port` and
`--grpc-port` of `python -m predictors serve` win over both.

Each entry has the variable, its default, the values that it accepts, and its meaning.
"""


def descriptions(group: type[SettingsGroup]) -> dict[str, str]:
    """The text of each field of a group in its source; its own docstring under an empty name."""
    body = ast.parse(inspect.getsource(group)).body[0].body  # type: ignore[attr-defined]
    found, last = {}, ""
    for node in body:
        if isinstance(node, ast.AnnAssign):
            last = ast.unparse(node.target)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[last] = " ".join(str(node.value.value).split())
    return found


def accepted(knob: Field[Any]) -> str:
    """The values that a setting accepts, in words."""
    bounds = bounds_of(knob)
    if bounds.choices:
        return ", ".join(f"`{choice}`" for choice in bounds.choices)
    if isinstance(knob.default, bool):
        return "`true`, `false`"
    if isinstance(knob.default, int | float):
        kind = "whole number" if isinstance(knob.default, int) else "number"
        if bounds.most < float("inf"):
            return f"{kind} from {bounds.least} to {bounds.most}"
        return f"{kind} >= {bounds.least}"
    return "text"


def shown(value: object) -> str:
    """A default as it would be written."""
    if value == "":
        return "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def wrapped(entry: str) -> str:
    """An entry of a list, wrapped at `WIDTH`."""
    return textwrap.fill(
        entry, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def files() -> dict[Path, str]:
    """The page, by its path."""
    lines = [HEAD]
    for group in fields(Settings):
        kind = type(getattr(Settings(), group.name))
        texts = descriptions(kind)
        lines += [f"## {group.name}", "", texts[""], ""]
        for knob in fields(kind):
            name = variable_name(kind, knob.name)
            also = f", or `{ALIASES[name]}`" if name in ALIASES else ""
            entry = f"- **`{name}`**{also} ({shown(knob.default)}; {accepted(knob)}): "
            lines.append(wrapped(entry + texts[knob.name]))
        lines.append("")
    return {PAGE: "\n".join(lines)}
