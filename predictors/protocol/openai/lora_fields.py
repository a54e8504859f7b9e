"""The field `loras` of pictures' bodies: names of adapters and their scales, as JSON over OpenAI's
routes and as the same JSON in a text over V2, whose parameters are scalars.
"""

from __future__ import annotations

import re
from typing import Any

from predictors.protocol.openai.fields import (
    DescribedRule,
    described,
    list_of,
    number,
    object_schema,
    read_fields,
    require,
    wrong,
)
from predictors.protocol.openai.json_texts import parse_json_text

MAX_LORAS = 8
"""Most adapters of one request, however many the server holds."""
MAX_SCALE = 4.0
MAX_NAME = 64  # characters of an adapter's name
MAX_TEXT = 4096  # characters of V2's parameter
NAME_RULE = "1 to 64 letters, digits and ._~@+-, beginning with a letter, a digit or _"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._~@+-]{0,63}+", re.ASCII)

NamedScales = tuple[tuple[str, float], ...]
"""Name and scale of each adapter, in the caller's order."""


def is_adapter_name(name: str) -> bool:
    """True for a name that an adapter may have."""
    return _NAME.fullmatch(name) is not None


@described({"type": "string", "pattern": f"^{_NAME.pattern.removesuffix('+')}$"})
def _name(name: str, value: Any) -> str:
    if not isinstance(value, str) or not is_adapter_name(value):
        raise wrong(name, f"the name of an adapter ({NAME_RULE})", value)
    return value


_RULES: dict[str, DescribedRule] = {"name": _name, "scale": number(-MAX_SCALE, MAX_SCALE)}


@described(object_schema(_RULES, "name"))
def _entry(name: str, value: Any) -> tuple[str, float]:
    read = read_fields(value, _RULES, where=name)
    require(read, "name", where=name)
    return read["name"], read.get("scale", 1.0)


_ENTRIES = list_of(_entry, at_most=MAX_LORAS, noun="adapters")


@described({**_ENTRIES.schema, "description": "Adapters (LoRA), added up in this order."})
def loras(name: str, value: Any) -> NamedScales:
    """A list of objects with `name` and, if it is not 1, `scale`."""
    return tuple(_ENTRIES.check(name, value))


def read_loras_text(text: str, name: str = "loras") -> NamedScales:
    """The adapters of a JSON text with the value of `loras`. Raises `InvalidRequest` naming the
    entry."""
    value = parse_json_text(name, text, MAX_TEXT, '[{"name": "NAME", "scale": 0.8}]')
    found: NamedScales = loras.check(name, value)
    return found
