"""Rules for JSON objects: a table of fields, those that must be there, and the value that they
make. An object's `type` may say which rule it has.

Worker processes import this module, so nothing here loads gRPC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.openai.fields import (
    DROP,
    MAX_NAME,
    DescribedRule,
    object_schema,
    read_fields,
    require,
    wrong,
)

Made = Callable[[str, dict[str, Any]], Any]
"""`(name, checked fields) -> value`."""


def object_of(
    rules: Mapping[str, DescribedRule], *needed: str, first: str | None = None
) -> Callable[[Made], DescribedRule]:
    """Decorator: makes a rule of a function of an object's checked fields. Unknown fields are
    refused, and so is an object without one of `needed`.

    The field `first` is checked before all others, which belong to its value.
    """

    def rule_of(made: Made) -> DescribedRule:
        def rule(name: str, value: Any) -> Any:
            if first is not None and isinstance(value, dict) and value.get(first) is not None:
                rules[first].check(f"{name}.{first}", value[first])
            read = read_fields(value, rules, where=name)
            require(read, *needed, where=name)
            return made(name, read)

        return DescribedRule(rule, object_schema(rules, *needed))

    return rule_of


def field_value(field: str) -> Made:
    """The value of one field, `DROP` where it is not there."""
    return lambda name, read: read.get(field, DROP)


def changes_nothing(name: str, read: dict[str, Any]) -> object:
    """The value of an object whose fields are valid but can't change the answer: it is dropped."""
    return DROP


def checked_later(schema: Mapping[str, Any]) -> DescribedRule:
    """A field whose value another one has the rule for; `schema` describes what that takes."""
    return DescribedRule(lambda name, value: value, schema)


def type_of(name: str, value: Any, *, usual: str | None = None) -> str:
    """The `type` of a JSON object, `usual` for one without. Raises `InvalidRequest`."""
    if not isinstance(value, dict):
        raise wrong(name, "an object with a type" if usual is None else "an object", value)
    kind = value.get("type", usual)
    if kind is None and usual is None:
        raise InvalidRequest(f"{name}.type is required", param=f"{name}.type")
    if kind is not None and not isinstance(kind, str):
        raise wrong(f"{name}.type", "a string", kind)
    return kind or usual or ""


def unsupported(name: str, value: object, why: str) -> InvalidRequest:
    """The failure "`name` 'value' is not supported: `why`", with `value` shortened."""
    message = f"{name} {str(value)[:MAX_NAME]!a} is not supported: {why}"
    return InvalidRequest(message, param=name)


def type_schemas(types: Mapping[str, DescribedRule]) -> list[dict[str, Any]]:
    """The schema of an object of each type."""
    found = []
    for kind, rule in types.items():
        properties = {**rule.schema["properties"], "type": {"const": kind}}
        found.append({**rule.schema, "properties": properties})
    return found


def ignored_type(*kinds: str) -> dict[str, Any]:
    """The schema of objects that are left out."""
    only = {"const": kinds[0]} if len(kinds) == 1 else {"enum": list(kinds)}
    return {
        "type": "object",
        "properties": {"type": only},
        "required": ["type"],
        "description": "Ignored: no model here reads it.",
    }
