"""Rules for single fields of an OpenAI body: type, range, harmless, ignored. Knows no route and
no model.

A rule takes a field's name and value and returns the checked value, or `DROP` when the field is
right but changes nothing. Types are strict: `"28"` and `true` are no numbers, while 28.0 is a
whole one, since JSON has one kind of number. `null` means absent, as it does for OpenAI. Whatever
has no rule is unknown and refused by name.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from predictors.errors import InvalidRequest

Rule = Callable[[str, Any], Any]
"""`(name, value) -> checked value or DROP`; raises `InvalidRequest` with `param=name`."""

DROP: Final = object()
MAX_SEED = 2**53 - 1
MAX_NAME = 64  # characters of a caller's own name that an error repeats


@dataclass(frozen=True, slots=True)
class OpenAIBody:
    """A decoded body: its checked fields, or why it is refused. `model` is the name that it gives,
    also when it is refused."""

    model: str | None
    fields: dict[str, Any] | None
    refusal: InvalidRequest | None = None

    def checked(self) -> dict[str, Any]:
        """The fields; raises the refusal."""
        if self.refusal is not None:
            raise self.refusal
        assert self.fields is not None
        return self.fields


def read_openai(body: Any, read: Callable[[object], dict[str, Any]]) -> OpenAIBody:
    """`body` as `read` checks it."""
    name = body.get("model") if isinstance(body, dict) else None
    model = name if isinstance(name, str) else None
    try:
        return OpenAIBody(model, read(body))
    except InvalidRequest as error:
        return OpenAIBody(model, None, error)


def read_fields(body: object, rules: Mapping[str, Rule], *, where: str = "") -> dict[str, Any]:
    """The checked fields of one JSON object; `where` is the path of a nested one, such as
    `messages[0]`.

    Raises `InvalidRequest` naming the first wrong field: unknown ones come first, since a misspelt
    name explains more than a missing one.
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
    """Raise `InvalidRequest` for the first of `names` that is absent."""
    for name in names:
        if name not in read:
            path = f"{where}.{name}" if where else name
            raise InvalidRequest(f"{path} is required", param=path)


def whole(low: int, high: int) -> Rule:
    """A whole number from `low` to `high`, both included."""

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
    """A string, of `at_most` characters if that is given."""

    def rule(name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise wrong(name, "a string", value)
        if at_most is not None and len(value) > at_most:
            message = f"{name} has {len(value)} characters; at most {at_most} are taken"
            raise InvalidRequest(message, param=name)
        return value

    return rule


def flag(name: str, value: Any) -> bool:
    """true or false; a rule."""
    if not isinstance(value, bool):
        raise wrong(name, "true or false", value)
    return value


def one_of(*choices: str) -> Rule:
    """One of a closed set of strings."""

    def rule(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise wrong(name, _either(choices), value)
        return value

    return rule


def ignored(kind: type) -> Rule:
    """A standard field that can't change the answer: its JSON type is checked, then it is
    dropped."""
    noun = {str: "a string", bool: "true or false", dict: "an object"}[kind]

    def rule(name: str, value: Any) -> object:
        if not isinstance(value, kind):
            raise wrong(name, noun, value)
        return DROP

    return rule


CLIENT_FIELDS: Mapping[str, Rule] = {
    "user": ignored(str),
    "metadata": ignored(dict),
    "store": ignored(bool),
    "safety_identifier": ignored(str),
    "service_tier": ignored(str),
    "prompt_cache_key": ignored(str),
}
"""Fields of every OpenAI route that can't change the answer."""


def harmless(*values: Any, why: str = "this server does not offer it") -> Rule:
    """A standard field that can't be honoured, save at these values, which ask for what is done
    anyway."""

    def rule(name: str, value: Any) -> object:
        # 0 == False in Python, not in JSON
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
    """`name` must be `expected`: the failure, with a short picture of what came instead."""
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
