"""Rules for the fields of an OpenAI body: types, ranges, fields that are dropped or refused.

A rule takes a field's name and value and returns the checked value, or `DROP` when the field is
right but changes nothing. Types are strict: `"28"` and `true` are not numbers, while 28.0 is a
whole number, since JSON has one kind of number. `null` means absent, as it does for OpenAI; a field
without a rule is refused as unknown.

A rule made here has a `schema` as well, from which `/openapi.json` and `docs/openai-fields.md` are
written.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from predictors.errors import InvalidRequest
from predictors.protocol.seeds import DRAWN, MAX_SEED, SEED_SCHEMA

B = TypeVar("B")
Rule = Callable[[str, Any], Any]
"""`(name, value) -> checked value or DROP`; raises `InvalidRequest` with `param=name`."""

Schema = Mapping[str, Any]
"""JSON Schema, as in OpenAPI 3.1."""

DROP: Final = object()
MAX_PARTIAL_IMAGES = 3  # as OpenAI
MAX_NAME = 64  # characters of an unknown field's name that an error repeats


@dataclass(frozen=True)
class DecodedBody(Generic[B]):
    """The outcome of checking a body: `body`, or the reason why it is refused. `model` is the name
    in the body, of a refused one too."""

    model: str | None
    body: B | None
    refusal: InvalidRequest | None = None

    def accepted(self) -> B:
        if self.refusal is not None:
            raise self.refusal
        assert self.body is not None
        return self.body


def check_body(body: Any, read: Callable[[object], B]) -> DecodedBody[B]:
    name = body.get("model") if isinstance(body, dict) else None
    model = name if isinstance(name, str) else None
    try:
        return DecodedBody(model, read(body))
    except InvalidRequest as error:
        return DecodedBody(model, None, error)


def read_fields(
    body: object, rules: Mapping[str, DescribedRule], *, where: str = ""
) -> dict[str, Any]:
    """The checked fields of one JSON object. `where` is the path of a nested object, such as
    `messages[0]`.

    Raises `InvalidRequest` naming the first wrong field. Unknown fields come first, since a
    misspelt name explains more than a missing one.
    """
    if not isinstance(body, dict):
        raise InvalidRequest(f"{where or 'the body'} must be a JSON object", param=where or None)
    for name in body:
        if name not in rules:
            raise _unknown(name, rules, where)
    read = {}
    for name, value in body.items():
        if value is None:
            continue
        path = f"{where}.{name}" if where else name
        checked = rules[name].check(path, value)
        if checked is not DROP:
            read[name] = checked
    return read


def require(read: Mapping[str, Any], *names: str, where: str = "") -> None:
    for name in names:
        if name not in read:
            path = f"{where}.{name}" if where else name
            raise InvalidRequest(f"{path} is required", param=path)


@dataclass(frozen=True, slots=True)
class DescribedRule:
    """A rule, and the values that it takes without null."""

    check: Rule
    schema: Schema

    def __call__(self, name: str, value: Any) -> Any:
        return self.check(name, value)


def described(schema: Schema) -> Callable[[Rule], DescribedRule]:
    """Decorator: makes a function a rule whose values `schema` describes."""
    return lambda check: DescribedRule(check, schema)


def said(about: str, rule: DescribedRule, *, default: object = DROP) -> DescribedRule:
    """The rule of a field with a sentence about it, and the value that leaving it out means."""
    own = rule.schema.get("description")
    more = {} if default is DROP else {"default": default}
    text = about if own is None else f"{about} {own}"
    return DescribedRule(rule.check, {**rule.schema, "description": text, **more})


def whole(low: int, high: int, *, or_value: int | None = None) -> DescribedRule:
    """A whole number in a range, or `or_value`, which has a meaning of its own."""
    span = f"a whole number from {low} to {high}"
    if or_value is not None:
        span += f", or {or_value}"

    def rule(name: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise wrong(name, span, value)
        if not low <= value <= high and value != or_value:
            raise wrong(name, span, value)
        return value

    if or_value is None:
        return DescribedRule(rule, {"type": "integer", "minimum": low, "maximum": high})
    ranges = [{"minimum": low, "maximum": high}, {"const": or_value}]
    return DescribedRule(rule, {"type": "integer", "anyOf": ranges})


def number(low: float, high: float, *, above: bool = False) -> DescribedRule:
    """A number from `low` to `high`; with `above`, `low` itself is excluded."""
    span = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"

    def rule(name: str, value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high or (above and value == low):
            raise wrong(name, f"a number {span}", value)
        return float(value)

    least = "exclusiveMinimum" if above else "minimum"
    return DescribedRule(rule, {"type": "number", least: low, "maximum": high})


def text(*, at_most: int | None = None) -> DescribedRule:
    def rule(name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise wrong(name, "a string", value)
        if at_most is not None and len(value) > at_most:
            message = f"{name} has {len(value)} characters; at most {at_most} are taken"
            raise InvalidRequest(message, param=name)
        return value

    length = {} if at_most is None else {"maxLength": at_most}
    return DescribedRule(rule, {"type": "string", **length})


@described({"type": "boolean"})
def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise wrong(name, "true or false", value)
    return value


def one_of(*choices: str) -> DescribedRule:
    def rule(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise wrong(name, _either(choices), value)
        return value

    return DescribedRule(rule, {"type": "string", "enum": list(choices)})


_JSON_TYPES: Mapping[type, tuple[str, str]] = {
    str: ("string", "a string"),
    bool: ("boolean", "true or false"),
    float: ("number", "a number"),
    list: ("array", "a list"),
    dict: ("object", "an object"),
}


def dropped(*kinds: type, why: str = "can't change the answer") -> DescribedRule:
    """A field that changes nothing: only its JSON type is checked. `float` is any number."""
    names, nouns = zip(*(_JSON_TYPES[kind] for kind in kinds), strict=True)
    types = tuple(int | float if kind is float else kind for kind in kinds)
    takes_flag = bool in kinds

    def rule(name: str, value: Any) -> object:
        if not isinstance(value, types) or (isinstance(value, bool) and not takes_flag):
            raise wrong(name, " or ".join(nouns), value)
        return DROP

    kind = names[0] if len(names) == 1 else list(names)
    return DescribedRule(rule, {"type": kind, "description": f"Ignored: {why}."})


def naming(rule: DescribedRule, asks: Callable[[Any], bool], note: str) -> DescribedRule:
    """The rule with the field's own name as the checked value where its value `asks` for something
    that only some models can do, else `DROP`: a model's codec refuses it by that name. `note` ends
    the description."""

    def named(name: str, value: Any) -> object:
        rule.check(name, value)
        return name if asks(value) else DROP

    about = str(rule.schema["description"]).rstrip(".")
    return DescribedRule(named, {**rule.schema, "description": f"{about}; {note}."})


def take_named(read: dict[str, Any], fields: Iterable[str]) -> str:
    """Takes these fields, whose rules are `naming`, out of a body's checked ones. Returns the name
    of the first that asks; empty without one."""
    found = [read.pop(name) for name in fields if name in read]
    return str(found[0]) if found else ""


_SEED = whole(0, MAX_SEED, or_value=DRAWN)


@described(SEED_SCHEMA)
def seed_or_drawn(name: str, value: Any) -> object:
    """A seed; `DRAWN` is the same as none."""
    found = _SEED.check(name, value)
    return DROP if found == DRAWN else found


CLIENT_FIELDS: Mapping[str, DescribedRule] = {
    "user": dropped(str, dict),  # Open WebUI sends an object
    "metadata": dropped(dict),
    "store": dropped(bool),
    "safety_identifier": dropped(str),
    "service_tier": dropped(str),
    "prompt_cache_key": dropped(str),
}
"""Fields of every OpenAI route that can't change the answer."""


def only_values(*values: Any, why: str = "this server does not offer it") -> DescribedRule:
    """Drop the field if it is one of `values`, which ask for what is done anyway, or refuse it.

    Without `values` only null is taken.
    """

    def rule(name: str, value: Any) -> object:
        if any(_is_same(value, each) for each in values):
            return DROP
        allowed = f"; it may only be {_either(values)}" if values else ""
        raise InvalidRequest(f"{name} is not supported: {why}{allowed}", param=name)

    allowed = {"enum": list(values)} if values else {"type": "null"}
    return DescribedRule(rule, {**allowed, "description": f"Ignored, else refused: {why}."})


def _is_same(value: Any, expected: Any) -> bool:
    """Equal in JSON, where 1 and 1.0 are one number and neither is `true`."""
    if isinstance(expected, bool) or isinstance(value, bool):
        return value is expected
    is_number = isinstance(expected, int | float) and isinstance(value, int | float)
    return value == expected if is_number else type(value) is type(expected) and value == expected


def list_of(item: DescribedRule, *, at_most: int, noun: str) -> DescribedRule:
    """A list of at most `at_most` items, each under its own rule with the name `name[i]`."""

    def rule(name: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise wrong(name, f"a list of {noun}", value)
        if len(value) > at_most:
            message = f"{name} has {len(value)} {noun}; at most {at_most} are taken"
            raise InvalidRequest(message, param=name)
        check = item.check
        return [check(f"{name}[{i}]", x) for i, x in enumerate(value)]

    return DescribedRule(rule, {"type": "array", "maxItems": at_most, "items": item.schema})


def object_schema(rules: Mapping[str, DescribedRule], *required: str) -> dict[str, Any]:
    """The schema of a JSON object with these fields. All but the `required` ones may be null."""
    fields = {
        name: dict(rule.schema) if name in required else or_null(rule.schema)
        for name, rule in rules.items()
    }
    needed = {"required": list(required)} if required else {}
    return {"type": "object", "properties": fields, **needed, "additionalProperties": False}


def or_null(schema: Schema) -> dict[str, Any]:
    """A schema that takes null as well."""
    if "enum" in schema and "type" not in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    if "anyOf" in schema or "enum" in schema or "type" not in schema:
        about = {key: schema[key] for key in ("description", "default") if key in schema}
        rest = {key: value for key, value in schema.items() if key not in about}
        return {"anyOf": [rest, {"type": "null"}], **about}
    kind = schema["type"]
    kinds = kind if isinstance(kind, list) else [kind]
    return {**schema, "type": kind if kind == "null" else [*kinds, "null"]}


def wrong(name: str, expected: str, value: object) -> InvalidRequest:
    """The failure "`name` must be `expected`, not ...", with `value` shortened."""
    return InvalidRequest(f"{name} must be {expected}, not {_shown(value)}", param=name)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    shown = ascii(value[:33]) if isinstance(value, str) else repr(value)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."


def _either(choices: tuple[Any, ...]) -> str:
    shown = [json.dumps(c) if isinstance(c, list | dict) else _shown(c) for c in choices]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"


def _unknown(name: str, rules: Mapping[str, DescribedRule], where: str) -> InvalidRequest:
    short = name[:MAX_NAME]
    path = f"{where}.{short}" if where else short
    close = difflib.get_close_matches(short, rules, n=1, cutoff=0.75)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return InvalidRequest(f"unknown field {path!a}{hint}", param=path)
