"""JSON Schemas as the grammar library takes them. A keyword that it can't keep is refused by name,
one that only describes is left out, and what would cost too much is refused by size.

`docs/structured-output.md` has the table of keywords.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final

from predictors.chat.grammars.formats import with_formats
from predictors.chat.grammars.patterns import as_in_schemas, check_pattern
from predictors.errors import InvalidRequest, TooLarge
from predictors.protocol.answer_format import MAX_PATTERN_CHARS

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
FORMATS = frozenset(
    "date-time time date duration email hostname ipv4 ipv6 uuid uri".split()  # noqa: SIM905
)
"""Formats that answers are held to. Others are annotations only, as JSON Schema says."""
ANNOTATIONS: Final = frozenset(
    {
        "$schema", "$comment", "title", "description", "default", "examples", "example",
        "deprecated", "readOnly", "writeOnly", "contentMediaType", "contentEncoding",
        "contentSchema", "discriminator", "externalDocs", "xml", "strict",
    }
)  # fmt: skip
REFUSED: Final[Mapping[str, str]] = {
    "not": "name what is allowed instead, with enum or anyOf",
    "if": "use anyOf with one option per case",
    "then": "use anyOf with one option per case",
    "else": "use anyOf with one option per case",
    "dependentRequired": "use anyOf with one option per case",
    "dependentSchemas": "use anyOf with one option per case",
    "dependencies": "use anyOf with one option per case",
    "uniqueItems": "leave it out and check the answer",
    "contains": "describe the items with items or prefixItems",
    "minContains": "describe the items with items or prefixItems",
    "maxContains": "describe the items with items or prefixItems",
    "propertyNames": "use patternProperties with additionalProperties false",
    "unevaluatedProperties": "use additionalProperties",
    "unevaluatedItems": "use items",
    "additionalItems": "use prefixItems and items",
    "nullable": 'use a type such as ["string", "null"]',
    "$id": "references are to #/$defs alone",
    "id": "references are to #/$defs alone",
    "$anchor": "references are to #/$defs alone",
    "$dynamicAnchor": "references are to #/$defs alone",
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
    "$recursiveAnchor": "use $ref",
    "$vocabulary": "leave it out",
}
"""Keywords that would change what is valid and that no grammar here can keep, with advice."""
HARMLESS: Final = {"uniqueItems": False, "nullable": False}
"""Values at which such a keyword asks for nothing."""

MAX_LITERAL_CHARS = 2048  # of a name, or a string of an enum or a const: a mask takes 0.7 ms
MAX_OPTIONAL = 250  # properties of one object that may be left out: 2 ms of a mask
MAX_PATTERN_PAIRS = 300  # of patternProperties: each pair is shown to be disjoint
MAX_MULTIPLE = 10_000  # least common multiple of all multipleOf: 40 ms and 13 MB to compile
MAX_MULTIPLE_DIGITS = 9

MAX_WHOLE = 2**53  # beyond it a double has not every whole number
MOST_DIGITS = 10**18  # a bound alone from here on makes the library count beyond 63 bits
MAX_BOUND = 9e18  # of minimum and maximum: the library makes no range beyond 63 bits
SPACING: Final = {"whitespace_pattern": r" |\n {0,32}"}
"""Between two tokens of JSON: nothing, one space, or a line break and its indentation."""
ESCAPES: Final = {"json_allowed_escapes": 'nrbtf\\"'}
"""Signs behind a backslash; other control characters than these do not come. With `u`, a name that
is written by it would not be known for one of `properties`: any value could stand under it."""
_UNWRITTEN = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")


def grammar_schema(where: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema as the library takes it, without spacing. It is within `check_schema`'s bounds.
    Raises `InvalidRequest` that names the keyword and its place."""
    reader = _SchemaReader(where)
    root = {key: value for key, value in schema.items() if key not in ("$id", "id")}
    read = reader.read(where, root)
    assert isinstance(read, dict)
    return read


class _SchemaReader:
    """One pass over a schema."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._multiple = 1
        self._pattern_pairs = 0
        self._keywords: dict[str, Callable[[str, Any], Any]] = {
            "$ref": self._reference,
            "type": _types,
            "enum": _options,
            "const": _literal,
            "format": _format,
            "pattern": _pattern,
            "multipleOf": self._multiple_of,
            "required": _names,
            "properties": self._properties,
            "patternProperties": self._pattern_properties,
            "$defs": self._schemas,
            "definitions": self._schemas,
            "additionalProperties": self.read,
            "items": self.read,
            "prefixItems": self._list,
            "anyOf": self._list,
            "oneOf": self._list,
            "allOf": self._list,
            **dict.fromkeys(("minimum", "exclusiveMinimum"), _least),
            **dict.fromkeys(("maximum", "exclusiveMaximum"), _most),
            **dict.fromkeys(
                ("minLength", "maxLength", "minItems", "maxItems", "minProperties"), _count
            ),
            "maxProperties": _count,
        }
        self._spellings = {_bare(name): name for name in (*self._keywords, *REFUSED)}

    def read(self, at: str, schema: Any) -> dict[str, Any] | bool:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise InvalidRequest(
                f"{at[:200]} must be a schema: an object or a boolean", param=at[:200]
            )
        read: dict[str, Any] = {}
        for name, value in schema.items():
            check = self._keywords.get(name)
            if check is None:
                self._check_unread(at, name, value)
                continue
            checked = check(f"{at}.{name}", value)
            if checked is not None or name == "const":
                read[name] = checked
        _check_properties(at, read)
        return with_formats(_with_both_bounds(read))

    def _check_unread(self, at: str, name: str, value: Any) -> None:
        """Refuse a keyword that may not be left out."""
        if name in ANNOTATIONS or name.startswith("x-"):
            return
        if name in REFUSED:
            if name in HARMLESS and value is HARMLESS[name]:
                return
            raise _refusal(f"{at}.{name}", "is not supported in a schema", REFUSED[name])
        meant = self._spellings.get(_bare(name))
        if meant is not None:
            raise _refusal(f"{at}.{name[:64]}", "is no keyword", f"did you mean {meant}?")

    def _reference(self, at: str, value: Any) -> str:
        if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
            raise _refusal(at, "must refer to a part of the same schema", 'such as "#/$defs/NAME"')
        return value

    def _list(self, at: str, value: Any) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise _refusal(at, "must be a list of at least one schema")
        return [self.read(f"{at}[{i}]", each) for i, each in enumerate(value)]

    def _schemas(self, at: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _refusal(at, "must be an object of schemas")
        return {name: self.read(f"{at}.{name[:64]}", each) for name, each in value.items()}

    def _properties(self, at: str, value: Any) -> dict[str, Any]:
        read = self._schemas(at, value)
        for name in read:
            _literal(at, name)
        return read

    def _pattern_properties(self, at: str, value: Any) -> dict[str, Any]:
        given = self._schemas(at, value)
        read = {_pattern(at, pattern): each for pattern, each in given.items()}
        if len(read) < len(given):
            raise _refusal(at, "has two patterns that are the same", "write one of them")
        self._pattern_pairs += len(read) * (len(read) - 1) // 2
        if self._pattern_pairs > MAX_PATTERN_PAIRS:
            raise TooLarge(f"{self._where} has too many patternProperties", param=self._where)
        return read

    def _multiple_of(self, at: str, value: Any) -> float:
        """The library's work grows with the least common multiple of all."""
        number = _number(at, value)
        digits = Decimal(repr(number)).normalize().as_tuple()
        if number <= 0:
            raise _refusal(at, "must be above 0")
        if (
            len(digits.digits) > MAX_MULTIPLE_DIGITS
            or abs(int(digits.exponent)) > MAX_MULTIPLE_DIGITS
        ):
            raise _refusal(at, f"has more than {MAX_MULTIPLE_DIGITS} digits")
        whole = int("".join(map(str, digits.digits))) * 10 ** max(0, int(digits.exponent))
        self._multiple = math.lcm(self._multiple, whole)
        if self._multiple > MAX_MULTIPLE:
            message = f"{self._where}: the least common multiple of all multipleOf is above"
            raise TooLarge(f"{message} {MAX_MULTIPLE}; leave one out", param=self._where)
        return number


# -- keywords with plain values --------------------------------------------------------------------
def _types(at: str, value: Any) -> Any:
    for each in value if isinstance(value, list) and value else [value]:
        if not isinstance(each, str) or each not in TYPES:
            raise _refusal(at, f"must be one of {', '.join(TYPES)}, or a list of them")
    return value


def _options(at: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise _refusal(at, "must be a list of at least one value")
    return [_literal(f"{at}[{i}]", each) for i, each in enumerate(value)]


def _literal(at: str, value: Any) -> Any:
    """A value that is written as it stands."""
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, int) and abs(part) > MAX_WHOLE and not _is_written(part):
            raise _refusal(
                at,
                f"has {str(part)[:32]}, which can't be written to the last digit",
                "make it text",
            )
        if isinstance(part, str) and _UNWRITTEN.search(part):
            raise _refusal(at, "has a control character that no answer can have", "leave it out")
        if isinstance(part, str) and len(part) > MAX_LITERAL_CHARS:
            message = f"{at[:200]} has a string of {len(part)} characters; at most"
            raise TooLarge(f"{message} {MAX_LITERAL_CHARS} are taken", param=at[:200])
        if isinstance(part, dict):
            left += [*part, *part.values()]
        elif isinstance(part, list):
            left += part
    return value


def _format(at: str, value: Any) -> str | None:
    if not isinstance(value, str):
        raise _refusal(at, "must be a string")
    return value if value in FORMATS else None


def _pattern(at: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _refusal(at, "must be a string")
    if len(value) > MAX_PATTERN_CHARS:
        message = f"{at[:200]} has {len(value)} characters; at most {MAX_PATTERN_CHARS} are taken"
        raise TooLarge(message, param=at[:200])
    check_pattern(at[:200], value)
    return as_in_schemas(value)


def _is_written(number: int) -> bool:
    """True if the library writes all digits of a whole number: as it is up to 63 bits if a double
    has it, beyond as the shortest digits that mean the same double, with zeros behind them."""
    try:
        near = float(number)
    except OverflowError:
        return False
    return (int(near) if abs(number) < 2**63 else int(Decimal(repr(near)))) == number


def _least(at: str, value: Any) -> float:
    """A lower bound. The library counts in doubles and 63 bits, so the next one above that it has:
    fewer numbers may come then, and none that is too small."""
    number = max(_number(at, value), -MAX_BOUND)
    if number > MAX_BOUND:
        raise _refusal(at, f"is beyond {MAX_BOUND:g}, up to which bounds are kept")
    near = float(number)
    return number if near == number else near if near > number else math.nextafter(near, math.inf)


def _most(at: str, value: Any) -> float:
    """An upper bound, as `_least`."""
    return -_least(at, -_number(at, value))


def _number(at: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        raise _refusal(at, "must be a number, at most 1e300")
    return value


def _count(at: str, value: Any) -> int:
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not is_whole or not 0 <= value < 2**31:
        raise _refusal(at, "must be a whole number from 0 to 2147483647")
    return int(value)


def _names(at: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _refusal(at, "must be a list of names")
    for name in value:
        _literal(at, name)
    return value


def _with_both_bounds(read: dict[str, Any]) -> dict[str, Any]:
    """The schema with the farthest other bound where only one is given and has 19 digits: the
    library would look for one of more digits, which it has no room for."""
    least = max(read.get(name, -math.inf) for name in ("minimum", "exclusiveMinimum"))
    most = min(read.get(name, math.inf) for name in ("maximum", "exclusiveMaximum"))
    if least >= MOST_DIGITS and most == math.inf:
        return read | {"maximum": MAX_BOUND}
    if most <= -MOST_DIGITS and least == -math.inf:
        return read | {"minimum": -MAX_BOUND}
    return read


def _check_properties(at: str, read: Mapping[str, Any]) -> None:
    """Names in a map may come twice, which is one property: only required ones can be counted."""
    required = set(read.get("required", ()))
    optional = len(read.get("properties", {}).keys() - required)
    if optional > MAX_OPTIONAL:
        message = f"{at[:200]} has {optional} properties that are not required; at most"
        raise TooLarge(f"{message} {MAX_OPTIONAL} are taken", param=at[:200])
    if read.get("minProperties", 0) > max(1, len(required)):
        raise _refusal(f"{at}.minProperties", "above 1 can't be kept", "name them in required")


def _bare(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _refusal(at: str, problem: str, advice: str = "") -> InvalidRequest:
    where = at[:200]
    return InvalidRequest(f"{where} {problem}{f'; {advice}' if advice else ''}", param=where)
