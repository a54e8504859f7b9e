"""The V2 parameters that set the format of an answer: `schema`, `regex`, `choice`, `grammar` and
`json_object`. V2's parameters are scalars, so a schema and a list of choices are JSON texts.
"""

from __future__ import annotations

from typing import Any, Final

from predictors.errors import InvalidRequest
from predictors.protocol.answer_format import (
    MAX_CHOICE_CHARS,
    MAX_GRAMMAR_CHARS,
    MAX_PATTERN_CHARS,
    MAX_SCHEMA_BYTES,
    AnswerFormat,
    choice_format,
    grammar_format,
    object_format,
    regex_format,
)
from predictors.protocol.http.bodies import parse_json
from predictors.protocol.openai.format_fields import only_one, schema_of_text
from predictors.protocol.v2.values import Parameters

_JSON: Final = {"type": "string", "contentMediaType": "application/json"}
_REGEX = "The answer matches it as a whole."
FORMAT_PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    "schema": {**_JSON, "maxLength": 2 * MAX_SCHEMA_BYTES, "description": "A JSON Schema."},
    "regex": {"type": "string", "maxLength": MAX_PATTERN_CHARS, "description": _REGEX},
    "choice": {**_JSON, "maxLength": 2 * MAX_CHOICE_CHARS, "description": "A list of strings."},
    "grammar": {"type": "string", "maxLength": MAX_GRAMMAR_CHARS, "description": "Lark or GBNF."},
    "json_object": {"type": "boolean", "default": False, "description": "Any JSON object."},
}


def read_answer_format(parameters: Parameters) -> AnswerFormat | None:
    """The format that a V2 request asks for. Raises `InvalidRequest` for two of them."""
    found: dict[str, AnswerFormat] = {}
    for name, make in _MAKERS.items():
        value = parameters.read_text(name)
        if value is not None:
            most = FORMAT_PARAMETERS[name]["maxLength"]
            if len(value) > most:
                message = f"{name} has {len(value)} characters; at most {most} are taken"
                raise InvalidRequest(message, param=name)
            found[name] = make(name, value)
    if parameters.read_flag("json_object"):
        found["json_object"] = object_format("json_object")
    return only_one(found)


def _choices(name: str, value: str) -> AnswerFormat:
    try:
        choices = parse_json(value.encode("utf-8", "surrogatepass"))
    except InvalidRequest as error:
        message = (
            f"""{error.message.replace("the body", name)}; it is a text such as '["a", "b"]'"""
        )
        raise InvalidRequest(message, param=name) from error
    return choice_format(name, choices)


_MAKERS = {
    "schema": schema_of_text,
    "regex": regex_format,
    "choice": _choices,
    "grammar": grammar_format,
}
