"""Rules for the fields of an OpenAI body: types, ranges, fields that are dropped or refused.

A rule takes a field's name and value and returns the checked value, or `DROP` when the field is
right but changes nothing. Types are strict: `"28"` and `true` are not numbers, while 28.0 is a
whole number, since JSON has one kind of number. `null` means absent, as it does for OpenAI; a field
without a rule is refused as unknown.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from predictors.errors import InvalidRequest

B = TypeVar("B")
Rule = Callable[[str, Any], Any]
"""`(name, value) -> checked value or DROP`; raises `InvalidRequest` with `param=name`."""

DROP: Final = object()
MAX_SEED = 2**53 - 1
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


def read_fields(body: object, rules: Mapping[str, Rule], *, where: str = "") -> dict[str, Any]:
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
        checked = rules[name](path, value)
        if checked is not DROP:
            read[name] = checked
    return read


def require(read: Mapping[str, Any], *names: str, where: str = "") -> None:
    for name in names:
        if name not in read:
            path = f"{where}.{name}" if where else name
            raise InvalidRequest(f"{path} is required", param=path)


def whole(low: int, high: int) -> Rule:
    def rule(name: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise wrong(name, f"a whole number from {low} to {high}", value)
        return value

    return rule


def number(low: float, high: float, *, above: bool = False) -> Rule:
    """A number from `low` to `high`; with `above`, `low` itself is excluded."""
    span = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"

    def rule(name: str, value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high or (above and value == low):
            raise wrong(name, f"a number {span}", value)
        return float(value)

    return rule


def text(*, at_most: int | None = None) -> Rule:
    def rule(name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise wrong(name, "a string", value)
        if at_most is not None and len(value) > at_most:
            message = f"{name} has {len(value)} characters; at most {at_most} are taken"
            raise InvalidRequest(message, param=name)
        return value

    return rule


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise wrong(name, "true or false", value)
    return value


def one_of(*choices: str) -> Rule:
    def rule(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise wrong(name, _either(choices), value)
        return value

    return rule


def dropped(kind: type) -> Rule:
    """A standard field that can't change the answer: only its JSON type is checked."""
    noun = {str: "a string", bool: "true or false", dict: "an object"}[kind]

    def rule(name: str, value: Any) -> object:
        if not isinstance(value, kind):
            raise wrong(name, noun, value)
        return DROP

    return rule


CLIENT_FIELDS: Mapping[str, Rule] = {
    "user": dropped(str),
    "metadata": dropped(dict),
    "store": dropped(bool),
    "safety_identifier": dropped(str),
    "service_tier": dropped(str),
    "prompt_cache_key": dropped(str),
}
"""Fields of every OpenAI route that can't change the answer."""


def only_values(*values: Any, why: str = "this server does not offer it") -> Rule:
    """Drop the field if it is one of `values`, which ask for what is done anyway, or refuse it."""

    def rule(name: str, value: Any) -> object:
        # types too: 0 == False in Python, but not in JSON
        if any(type(value) is type(v) and value == v for v in values):
            return DROP
        allowed = f"; it may only be {_either(values)}" if values else ""
        raise InvalidRequest(f"{name} is not supported: {why}{allowed}", param=name)

    return rule


def list_of(item: Rule, *, at_most: int, noun: str) -> Rule:
    """A list of at most `at_most` items, each under its own rule with the name `name[i]`."""

    def rule(name: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise wrong(name, f"a list of {noun}", value)
        if len(value) > at_most:
            message = f"{name} has {len(value)} {noun}; at most {at_most} are taken"
            raise InvalidRequest(message, param=name)
        return [item(f"{name}[{i}]", x) for i, x in enumerate(value)]

    return rule


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
    shown = ["[]" if c == [] else "{}" if c == {} else _shown(c) for c in choices]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"


def _unknown(name: str, rules: Mapping[str, Rule], where: str) -> InvalidRequest:
    short = name[:MAX_NAME]
    path = f"{where}.{short}" if where else short
    close = difflib.get_close_matches(short, rules, n=1, cutoff=0.75)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return InvalidRequest(f"unknown field {path!a}{hint}", param=path)
