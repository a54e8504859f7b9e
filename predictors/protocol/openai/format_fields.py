"""The fields that set the format of an answer: OpenAI's `response_format`, vLLM's
`structured_outputs` and `guided_*`, SGLang's `regex` and `ebnf`, llama.cpp's `grammar` and
`json_schema`. One body has one of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from predictors.errors import InvalidRequest
from predictors.protocol.answer_format import (
    MAX_CHOICES,
    MAX_GRAMMAR_CHARS,
    MAX_PATTERN_CHARS,
    AnswerFormat,
    choice_format,
    grammar_format,
    object_format,
    regex_format,
    schema_format,
)
from predictors.protocol.http.bodies import parse_json
from predictors.protocol.openai.fields import (
    DROP,
    DescribedRule,
    described,
    dropped,
    flag,
    object_schema,
    one_of,
    only_values,
    read_fields,
    said,
    wrong,
)

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}+", re.ASCII)
_SPACING = "spaces between values are bounded anyway"


def _format_rule(
    schema: Mapping[str, Any], make: Callable[[str, Any], AnswerFormat], *empty: Any
) -> DescribedRule:
    """A rule for one kind of format; one of the `empty` values asks for none."""

    def rule(name: str, value: Any) -> object:
        is_empty = any(type(value) is type(each) and value == each for each in empty)
        return DROP if is_empty else make(name, value)

    return DescribedRule(rule, schema)


def schema_of_text(name: str, value: Any) -> AnswerFormat:
    """The format of a schema, given as an object or as its JSON."""
    if not isinstance(value, str):
        return schema_format(name, value)
    try:
        parsed = parse_json(value.encode("utf-8", "surrogatepass"))
    except InvalidRequest as error:
        message = f"{error.message.replace('the body', name)}; it is a JSON Schema"
        raise InvalidRequest(message, param=name) from error
    return schema_format(name, parsed)


_SCHEMA = {"type": ["object", "string"], "description": "A JSON Schema, or its JSON."}
_REGEX = {"type": "string", "maxLength": MAX_PATTERN_CHARS}
_CHOICE = {"type": "array", "items": {"type": "string"}, "maxItems": MAX_CHOICES}
_GRAMMAR = {"type": "string", "maxLength": MAX_GRAMMAR_CHARS, "description": "Lark or GBNF."}

json_rule = _format_rule(_SCHEMA, schema_of_text, "")
regex_rule = _format_rule(_REGEX, regex_format, "")
choice_rule = _format_rule(_CHOICE, choice_format, [])
grammar_rule = _format_rule(_GRAMMAR, grammar_format, "")


# -- OpenAI ----------------------------------------------------------------------------------------
@described({"type": "string", "pattern": f"^{_NAME.pattern.removesuffix('+')}$"})
def _schema_name(name: str, value: Any) -> object:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise wrong(name, "1 to 64 letters, digits, _ and -", value)
    return DROP


@described({"type": "object", "description": "A JSON Schema."})
def _schema(name: str, value: Any) -> AnswerFormat:
    return schema_format(name, value)


_JSON_SCHEMA: dict[str, DescribedRule] = {
    "name": said("A name for the schema, which changes nothing.", _schema_name),
    "description": dropped(str, why="only the schema shapes the answer"),
    "strict": dropped(bool, why="every schema is kept strictly"),
    "schema": _schema,
}


@described(object_schema(_JSON_SCHEMA, "schema"))
def _json_schema(name: str, value: Any) -> AnswerFormat:
    read = read_fields(value, _JSON_SCHEMA, where=name)
    if "schema" not in read:
        raise InvalidRequest(f"{name}.schema is required", param=f"{name}.schema")
    found: AnswerFormat = read["schema"]
    return found


_RESPONSE_FORMAT: dict[str, DescribedRule] = {
    "type": said("The kind of format.", one_of("text", "json_object", "json_schema")),
    "json_schema": said("The schema, for the type `json_schema`.", _json_schema),
}


@described(object_schema(_RESPONSE_FORMAT, "type"))
def response_format(name: str, value: Any) -> object:
    """An `AnswerFormat`, or nothing for plain text."""
    if isinstance(value, dict) and value.get("type") is None:
        raise InvalidRequest(f"{name}.type is required", param=f"{name}.type")
    read = read_fields(value, _RESPONSE_FORMAT, where=name)
    kind, schema = read["type"], read.get("json_schema")
    if (kind == "json_schema") != (schema is not None):
        problem = "is required" if schema is None else "is for the type json_schema"
        raise InvalidRequest(f"{name}.json_schema {problem}", param=f"{name}.json_schema")
    if kind == "json_object":
        return object_format(name)
    return DROP if schema is None else schema


# -- vLLM ------------------------------------------------------------------------------------------
_STRUCTURED: dict[str, DescribedRule] = {
    "json": json_rule,
    "regex": regex_rule,
    "choice": choice_rule,
    "grammar": grammar_rule,
    "json_object": flag,
    "disable_any_whitespace": dropped(bool, why=_SPACING),
    "disable_fallback": dropped(bool, why="there is one way to keep a format"),
    "disable_additional_properties": only_values(False, why="say so in the schema"),
    "whitespace_pattern": only_values(why=_SPACING),
    "structural_tag": only_values(why="use tools, or a grammar"),
}


@described(object_schema(_STRUCTURED))
def structured_outputs(name: str, value: Any) -> object:
    """One of its kinds, or nothing for an empty object."""
    read = read_fields(value, _STRUCTURED, where=name)
    if read.pop("json_object", False):
        read["json_object"] = object_format(f"{name}.json_object")
    return only_one({f"{name}.{key}": found for key, found in read.items()}) or DROP


FORMAT_FIELDS: Final[Mapping[str, DescribedRule]] = {
    "response_format": said(
        "Plain text, any JSON object, or JSON that a schema allows.", response_format
    ),
    "structured_outputs": said(
        "vLLM's form of the same, with one of its kinds.", structured_outputs
    ),
    "guided_json": said(
        "vLLM's older form: the answer is JSON that this schema allows.", json_rule
    ),
    "guided_regex": said(
        "vLLM's older form: the answer matches this regular expression as a whole.", regex_rule
    ),
    "guided_choice": said("vLLM's older form: the answer is one of these texts.", choice_rule),
    "guided_grammar": said(
        "vLLM's older form: the answer is a sentence of this grammar.", grammar_rule
    ),
    "regex": said("SGLang's: the answer matches this regular expression as a whole.", regex_rule),
    "ebnf": said("SGLang's: the answer is a sentence of this grammar.", grammar_rule),
    "grammar": said("llama.cpp's: the answer is a sentence of this grammar.", grammar_rule),
    "json_schema": _format_rule(_SCHEMA, schema_of_text, "", {}),  # llama.cpp's default is {}
}
"""Each gives an `AnswerFormat`."""


def read_format(read: dict[str, Any]) -> AnswerFormat | None:
    """Takes the fields of a format out of checked ones. Raises `InvalidRequest` for two of them,
    and for an answer that would have to go on after its end."""
    found = only_one({name: read.pop(name) for name in FORMAT_FIELDS if name in read})
    if found is not None and read.get("ignore_eos"):
        message = f"ignore_eos can't be combined with {found.where}: the answer ends where it is "
        raise InvalidRequest(f"{message}complete; leave one of them out", param="ignore_eos")
    return found


def only_one(formats: Mapping[str, AnswerFormat]) -> AnswerFormat | None:
    """The format of a request that names at most one. Raises `InvalidRequest`."""
    if len(formats) > 1:
        first, second = list(formats)[:2]
        message = f"{first} and {second} both set the answer's format; leave one of them out"
        raise InvalidRequest(message, param=second)
    return next(iter(formats.values()), None)
