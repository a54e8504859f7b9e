"""Ten schemas as callers send them, each with a longest answer: flat and nested objects, enums,
patterns, formats, unions, recursion, bounded lists, numbers and maps.
"""

from __future__ import annotations

from typing import Any

from predictors.protocol.answer_format import AnswerFormat, schema_format


def _object(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    required = {"required": list(properties), "additionalProperties": False}
    return {"type": "object", "properties": properties, **required, **more}


_WORD = {"type": "string", "maxLength": 12}
_NULL = {"type": "null"}
_PERCENT = {"type": "integer", "minimum": 0, "maximum": 100}
_SHAPE = _object(
    {
        "kind": {"enum": ["circle", "square", "triangle"]},
        "color": {"enum": ["red", "green", "blue", "yellow"]},
        "box": {"type": "array", "items": _PERCENT, "minItems": 4, "maxItems": 4},
    }
)
_NODE = _object(
    {
        "value": {"type": "integer", "minimum": -9, "maximum": 9},
        "next": {"anyOf": [{"$ref": "#/$defs/leaf"}, _NULL]},
    }
)

SCHEMAS: dict[str, dict[str, Any]] = {
    "person": _object(
        {"name": {"type": "string", "minLength": 1, "maxLength": 20}, "age": _PERCENT}
    ),
    "shapes": _object({"shapes": {"type": "array", "items": _SHAPE, "maxItems": 3}}),
    "choice": {"enum": ["yes", "no", "unsure", 0, 1, None, True]},
    "event": {
        "anyOf": [
            _object({"type": {"const": "click"}, "x": _PERCENT, "y": _PERCENT}),
            _object({"type": {"const": "text"}, "text": _WORD}),
            _object({"type": {"const": "wait"}, "seconds": {"type": "integer", "enum": [1, 5]}}),
        ]
    },
    "codes": _object(
        {
            "number": {"type": "string", "pattern": "^INV-[0-9]{4,6}$"},
            "date": {"type": "string", "format": "date"},
            "tags": {
                "type": "array",
                "items": {"type": "string", "pattern": "^[a-z][a-z0-9]{0,7}$"},
                "minItems": 1,
                "maxItems": 3,
            },
        }
    ),
    "optional": {
        "type": "object",
        "title": "Book",
        "properties": {
            name: {"anyOf": [_WORD, _NULL], "default": None, "title": name.title()}
            for name in ("title", "author", "language")
        },
        "additionalProperties": False,
    },
    "map": {
        "type": "object",
        "patternProperties": {"^[a-z]{1,4}$": {"type": "integer", "minimum": 0, "maximum": 99}},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 3,
    },
    "tree": {**_NODE, "$defs": {"leaf": _object({"value": _PERCENT, "name": _WORD})}},
    "merged": {
        "allOf": [
            {"type": "object", "properties": {"id": _PERCENT}, "required": ["id"]},
            {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]},
        ],
        "properties": {"id": True, "ok": True},
        "additionalProperties": False,
    },
    "pair": {
        "type": "array",
        "prefixItems": [{"const": "at"}, {"type": "number", "enum": [0.5, 1, 2.25]}, _WORD],
        "items": False,
        "minItems": 3,
    },
}


def formats() -> dict[str, AnswerFormat]:
    return {name: schema_format(name, schema) for name, schema in SCHEMAS.items()}
