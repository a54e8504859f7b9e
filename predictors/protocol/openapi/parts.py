"""Parts of the OpenAPI document that routes of all protocols share: answers, errors, references."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from predictors.protocol.error_formats import ERROR_FORMATS
from predictors.protocol.faults import RENDERINGS

Json = dict[str, Any]

JSON_TYPE = "application/json"


def get_operation(operation: str, summary: str, schema: Json) -> Json:
    answer = {"description": summary, **json_content(schema)}
    return {"operationId": operation, "summary": summary, "responses": {"200": answer}}


def probe_operation(operation: str, summary: str, schema: Json) -> Json:
    found = get_operation(operation, summary, schema)
    found["responses"]["503"] = {"description": "Not so", **json_content(schema)}
    return found


def text_operation(operation: str, summary: str, media: str) -> Json:
    """A GET whose answer is a text of this type."""
    content = {"content": {media: {"schema": {"type": "string"}}}}
    answers = {"200": {"description": summary, **content}}
    return {"operationId": operation, "summary": summary, "responses": answers}


def empty_probe(operation: str, summary: str) -> Json:
    """As `probe_operation`, for a probe whose answers have no body."""
    answers = {"200": {"description": summary}, "503": {"description": "Not so"}}
    return {"operationId": operation, "summary": summary, "responses": answers}


def error_answers(schema: str, *statuses: int) -> Json:
    """References to the responses of failures with these statuses, or all of a request for a
    model. `schema` is that of their bodies."""
    found = statuses or sorted({each.status for each in RENDERINGS.values()} - _RARE)
    return {str(each): {"$ref": f"#/components/responses/{schema}{each}"} for each in found}


_RARE = {410, 499, 502}  # of pictures' addresses; of callers who left; of the activator


def error_responses() -> Json:
    """The components that `error_answers` refers to."""
    codes: dict[int, list[str]] = {}
    for rendering in RENDERINGS.values():
        codes.setdefault(rendering.status, []).append(rendering.code or rendering.type)
    codes[429].append("server_overloaded, where the operator prefers it to 503")
    found: Json = {}
    for status, names in sorted(codes.items()):
        waits = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
        head = {"headers": waits} if status in (429, 503) else {}
        for schema in (each.schema for each in ERROR_FORMATS):
            body = json_content(schema_ref(schema))
            found[f"{schema}{status}"] = {"description": ", ".join(names), **head, **body}
    return found


def complete_object(fields: Json) -> Json:
    return {"type": "object", "required": list(fields), "properties": fields}


def path_parameter(name: str, schema: Json, about: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": schema, "description": about}


def json_content(schema: Json, *, required: bool = False) -> Json:
    found: Json = {"content": {JSON_TYPE: {"schema": schema}}}
    return {**found, "required": True} if required else found


def schema_ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def component_names(models: Sequence[str]) -> dict[str, str]:
    """A name for identifiers per model, which stays what it is when other models come or go,
    unless two would be the same."""
    found = {name: re.sub(r"[^A-Za-z0-9_]", "_", name[:64]) for name in models}
    plain = list(found.values())
    for name, made in found.items():
        if plain.count(made) > 1:
            found[name] = f"{made}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return found


def for_generators(schema: Any) -> Any:
    """The same values in the words that generators of clients know: lists name their items, and
    an enumeration has one type of scalars."""
    if isinstance(schema, list):
        return [for_generators(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: for_generators(value) for key, value in schema.items()}
    kinds = found.get("type", ())
    if "array" in ([kinds] if isinstance(kinds, str) else kinds):
        found.setdefault("items", {})
    options = found.get("anyOf", ())
    if kinds == "integer" and len(options) == 2 and options[1].keys() == {"const"}:
        del found["anyOf"]
        found |= _range_or(options[0], options[1]["const"])
    values = found.get("enum")
    if isinstance(values, list) and not all(isinstance(each, str) for each in values):
        del found["enum"]
        found.pop("type", None)
        options = [_only(each) for each in values]
        found |= options[0] if len(options) == 1 else {"anyOf": options}
    return found


def _range_or(numbers: Json, value: int) -> Json:
    """Whole numbers of a range, and one below it."""
    low = numbers["minimum"]
    gap = {"not": {"exclusiveMinimum": value, "exclusiveMaximum": low}} if low > value + 1 else {}
    return {"minimum": value, "maximum": numbers["maximum"], **gap}


def _only(value: object) -> Json:
    """A schema of this value alone."""
    if value is None:
        return {"type": "null"}
    if value == [] and isinstance(value, list):
        return {"type": "array", "items": {}, "maxItems": 0}
    if value == {}:
        return {"type": "object", "maxProperties": 0}
    if isinstance(value, dict):
        fields = {name: _only(each) for name, each in value.items()}
        return {**complete_object(fields), "additionalProperties": False}
    if isinstance(value, list):
        count = {"minItems": len(value), "maxItems": len(value)}
        if len(value) == 1:
            return {"type": "array", "items": _only(value[0]), **count}
        return {"type": "array", "prefixItems": [_only(x) for x in value], "items": {}, **count}
    names = {bool: "boolean", int: "integer", float: "number", str: "string"}
    return {"type": names[type(value)], "const": value}
