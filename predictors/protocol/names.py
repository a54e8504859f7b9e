"""Names of models and their aliases: which are allowed, and how they stand in a path.

A name is one or more segments with slashes between them, as `org/name`. A path may have the slash
as it is or as `%2F`. Segments that routes use (`infer`, `versions` ...) are allowed first only, so
that no path has two meanings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from starlette.convertors import PathConvertor, register_url_convertor

from predictors.errors import InvalidRequest

MAX_NAME = 128
RESERVED = (
    "config", "explain", "generate", "generate_stream", "infer", "load", "logging", "predict",
    "ready", "stats", "trace", "unload", "versions",
)  # fmt: skip
"""Segments of routes below a model's name, those of Triton and KServe that are not offered too."""

ALLOWED = (
    f"at most {MAX_NAME} letters, digits and ._~@+:- in one or more parts with / between them, "
    "each beginning with a letter, a digit or _"
)
_PART = r"[A-Za-z0-9_][A-Za-z0-9._~@+:-]*+"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*+")
V1_ACTIONS = (":predict", ":explain")  # KServe V1 writes them behind a name


class ModelNameConvertor(PathConvertor):
    """The part of a path that is a model's name: `{model:model}` in a route."""

    regex = rf"[^/]+(?:/(?!(?:{'|'.join(RESERVED)})(?:/|$))[^/]+)*"


register_url_convertor("model", ModelNameConvertor())


def check_name(name: str, what: str = "the model name") -> None:
    """Raise `InvalidRequest` for a name that is not allowed. `what` begins the message."""
    shown = f"{what} {name[:MAX_NAME]!r}"
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise InvalidRequest(f"{shown} is not allowed: a name has {ALLOWED}")
    taken = [part for part in name.split("/")[1:] if part in RESERVED]
    taken += [action for action in V1_ACTIONS if name.endswith(action)]
    if taken:
        raise InvalidRequest(f"{shown} is not allowed: {taken[0]!r} there is a part of a route")


def read_aliases(text: str) -> dict[str, str]:
    """The model of each alias in `ALIAS=MODEL,...`. Raises `InvalidRequest`."""
    aliases: dict[str, str] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        alias, separator, model = (part.strip() for part in pair.partition("="))
        if not separator or not model:
            raise InvalidRequest(f"an alias is given as ALIAS=MODEL, not {pair[:MAX_NAME]!r}")
        check_name(alias, "the alias")
        if alias in aliases:
            raise InvalidRequest(f"the alias {alias!r} is given twice")
        aliases[alias] = model
    return aliases


def check_names(models: Iterable[str], aliases: Mapping[str, str]) -> None:
    """Check all names of a server. Raises `InvalidRequest` for one that is not allowed or is given
    twice, and for an alias of something that is not served."""
    found: set[str] = set()
    for name in models:
        check_name(name)
        if name in found:
            raise InvalidRequest(f"the model name {name!r} is given twice")
        found.add(name)
    served = ", ".join(sorted(found))
    for alias, model in aliases.items():
        if alias in found:
            raise InvalidRequest(f"the alias {alias!r} is the name of a model")
        if model not in found:
            shown = model[:MAX_NAME]
            raise InvalidRequest(f"the alias {alias!r} names no model: {shown!r}; served: {served}")
