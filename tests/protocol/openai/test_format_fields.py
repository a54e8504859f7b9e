from __future__ import annotations

from typing import Any

import pytest

from predictors.errors import InvalidRequest, TooLarge
from predictors.protocol.answer_format import (
    MAX_CHOICES,
    MAX_ENUM,
    MAX_GRAMMAR_CHARS,
    MAX_PATTERN_CHARS,
    MAX_SCHEMA_BYTES,
    MAX_SCHEMA_DEPTH,
    AnswerFormat,
)
from predictors.protocol.openai.chat_body import read_chat_body

CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
SCHEMA = {"type": "object", "properties": {"b": {"type": "null"}, "a": {"title": "é"}}}
TEXT = '{"type":"object","properties":{"b":{"type":"null"},"a":{"title":"é"}}}'
JSON_SCHEMA = AnswerFormat("json_schema", TEXT)


def named(**more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, **more}}


def nested(depth: int) -> Any:
    found: Any = {}
    for _ in range(depth - 1):
        found = {"items": found}
    return found


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": None}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "text", "json_schema": None}}, None),
        ({"response_format": {"type": "json_object"}}, AnswerFormat("json_object", "")),
        ({"response_format": named()}, JSON_SCHEMA),
        ({"response_format": named(strict=True, description="d")}, JSON_SCHEMA),
        ({"response_format": named(strict=False)}, JSON_SCHEMA),
        ({"structured_outputs": {}}, None),
        ({"structured_outputs": {"json": SCHEMA, "regex": None}}, JSON_SCHEMA),
        ({"structured_outputs": {"json": TEXT}}, JSON_SCHEMA),
        ({"structured_outputs": {"json_object": True}}, AnswerFormat("json_object", "")),
        ({"structured_outputs": {"json_object": False}}, None),
        ({"structured_outputs": {"regex": "a+"}}, AnswerFormat("regex", "a+")),
        ({"structured_outputs": {"grammar": "x"}}, AnswerFormat("grammar", "x")),
        ({"structured_outputs": {"choice": ["a", "b", "a"]}}, AnswerFormat("choice", '["a","b"]')),
        ({"guided_json": SCHEMA}, JSON_SCHEMA),
        ({"guided_json": TEXT}, JSON_SCHEMA),
        ({"guided_json": {}}, AnswerFormat("json_schema", "{}")),
        ({"guided_regex": "a+"}, AnswerFormat("regex", "a+")),
        ({"guided_regex": "", "guided_choice": [], "guided_grammar": ""}, None),
        ({"guided_choice": ["a"]}, AnswerFormat("choice", '["a"]')),
        ({"guided_grammar": "x", "guided_decoding_backend": "auto"}, AnswerFormat("grammar", "x")),
        ({"regex": "a+"}, AnswerFormat("regex", "a+")),
        ({"ebnf": "x"}, AnswerFormat("grammar", "x")),
        ({"grammar": "x", "json_schema": {}}, AnswerFormat("grammar", "x")),
        ({"json_schema": SCHEMA}, JSON_SCHEMA),
    ],
    ids=range(26),
)
def test_a_body_has_the_format_that_it_asks_for(
    fields: dict[str, Any], expected: AnswerFormat | None
) -> None:
    assert read_chat_body({**CHAT, **fields}).answer_format == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": "json_object"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {**named(), "type": "text"}}, None),
        ({"response_format": {"type": "text", "schema": {}}}, "response_format.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": named(schema=[])}, "response_format.json_schema.schema"),
        ({"response_format": named(schema=True)}, "response_format.json_schema.schema"),
        ({"response_format": named(name="a b")}, "response_format.json_schema.name"),
        ({"response_format": named(strict="yes")}, "response_format.json_schema.strict"),
        ({"response_format": named(), "guided_regex": "a"}, "guided_regex"),
        ({"guided_json": SCHEMA, "guided_choice": ["a"]}, "guided_choice"),
        ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"json_object": 1}}, "structured_outputs.json_object"),
        ({"structured_outputs": {"whitespace_pattern": "x"}}, None),
        ({"structured_outputs": {"structural_tag": "x"}}, None),
        ({"structured_outputs": {"pattern": "x"}}, "structured_outputs.pattern"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "3"}, "guided_json"),
        ({"guided_json": 3}, "guided_json"),
        ({"guided_regex": ["a"]}, "guided_regex"),
        ({"guided_choice": "a"}, "guided_choice"),
        ({"guided_choice": ["a", 1]}, "guided_choice[1]"),
        ({"guided_choice": [""]}, "guided_choice[0]"),
        ({"guided_regex": "\ud800"}, "guided_regex"),
        ({"guided_choice": ["\ud800"]}, "guided_choice"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
        ({"guided_whitespace_pattern": " *"}, "guided_whitespace_pattern"),
    ],
    ids=range(29),
)
def test_a_format_that_can_not_be_is_refused_by_name(
    fields: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_chat_body({**CHAT, **fields})
    if param is not None:
        assert caught.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_regex": "a" * (MAX_PATTERN_CHARS + 1)},
        {"guided_grammar": "a" * (MAX_GRAMMAR_CHARS + 1)},
        {"guided_choice": [str(i) for i in range(MAX_CHOICES + 1)]},
        {"guided_choice": ["a" * 70_000]},
        {"guided_json": {"enum": list(range(MAX_ENUM + 1))}},
        {"guided_json": {"description": "a" * MAX_SCHEMA_BYTES}},
        {"guided_json": {"enum": [[0] * 100] * 250}},
        {"guided_json": nested(MAX_SCHEMA_DEPTH + 1)},
    ],
    ids=range(8),
)
def test_a_format_beyond_the_bounds_is_too_large(fields: dict[str, Any]) -> None:
    with pytest.raises(TooLarge):
        read_chat_body({**CHAT, **fields})


def test_a_schema_at_the_bounds_is_taken() -> None:
    assert read_chat_body({**CHAT, "guided_json": nested(MAX_SCHEMA_DEPTH)}).answer_format
