from __future__ import annotations

from typing import Any

import pytest

from predictors.chat.grammars.compiler import GrammarCompiler
from predictors.chat.grammars.schemas import (
    ANNOTATIONS,
    HARMLESS,
    MAX_OPTIONAL,
    REFUSED,
    grammar_schema,
)
from predictors.errors import InvalidRequest, TooLarge
from predictors.protocol.answer_format import schema_format
from tests.chat.grammars.walks import takes

ALL_OPTIONAL = {"properties": {f"p{i}": True for i in range(MAX_OPTIONAL + 1)}}


@pytest.mark.parametrize("keyword", sorted(REFUSED.keys() - {"$id", "id"}))
def test_a_keyword_that_can_not_be_kept_is_refused_by_name(keyword: str) -> None:
    schema = {"type": "object", "properties": {"a": {keyword: True}}}
    with pytest.raises(InvalidRequest, match="not supported") as caught:
        grammar_schema("schema", schema)
    assert caught.value.param == f"schema.properties.a.{keyword}"
    assert REFUSED[keyword] in caught.value.message


@pytest.mark.parametrize("keyword", sorted(ANNOTATIONS))
def test_a_keyword_that_describes_is_left_out(keyword: str) -> None:
    assert grammar_schema("schema", {"type": "null", keyword: {"not": {}}}) == {"type": "null"}


def test_what_asks_for_nothing_is_left_out() -> None:
    schema = {"type": "string", "x-order": 3, "units": "mm", "format": "binary", **HARMLESS}
    assert grammar_schema("schema", schema) == {"type": "string"}
    assert grammar_schema("s", {"$id": "urn:x", "const": None}) == {"const": None}


def test_a_property_may_have_the_name_of_a_keyword() -> None:
    names = [*REFUSED, *ANNOTATIONS, "x-guidance", "properties"]
    schema = {"properties": {name: {"type": "null"} for name in names}}
    assert grammar_schema("schema", schema) == schema


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"minlength": 3}, "did you mean minLength"),
        ({"additional_properties": False}, "did you mean additionalProperties"),
        ({"type": "str"}, "must be one of null"),
        ({"type": []}, "must be one of null"),
        ({"enum": []}, "at least one value"),
        ({"anyOf": []}, "at least one schema"),
        ({"anyOf": {}}, "at least one schema"),
        ({"items": [{}]}, "must be a schema"),
        ({"properties": []}, "object of schemas"),
        ({"properties": {"a": 1}}, "must be a schema"),
        ({"required": "a"}, "list of names"),
        ({"required": [1]}, "list of names"),
        ({"maxLength": -1}, "whole number"),
        ({"maxLength": 1.5}, "whole number"),
        ({"maxLength": True}, "whole number"),
        ({"minItems": 10**10}, "whole number"),
        ({"minimum": "1"}, "must be a number"),
        ({"minimum": 1e301}, "must be a number"),
        ({"multipleOf": 0}, "above 0"),
        ({"multipleOf": 0.1234567891}, "digits"),
        ({"pattern": 3}, "must be a string"),
        ({"format": 3}, "must be a string"),
        ({"$ref": "http://example.com/x"}, "same schema"),
        ({"$ref": "other.json"}, "same schema"),
        ({"$ref": 3}, "same schema"),
        ({"minProperties": 2}, "required"),
    ],
)
def test_a_wrong_value_is_named(schema: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        grammar_schema("schema", schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"multipleOf": 10_007},
        {"allOf": [{"multipleOf": prime} for prime in (97, 101, 103)]},
        {"const": "x" * 2049},
        {"enum": [["x" * 2049]]},
        {"properties": {"k" * 2049: True}},
        ALL_OPTIONAL,
        {"patternProperties": {f"^a{i}$": True for i in range(26)}},
        {"pattern": "(?:a{200}){200}"},
        {"pattern": "a{999999999999}"},
        {"pattern": "a" * 2049},
    ],
    ids=range(10),
)
def test_what_costs_too_much_is_refused_by_size(schema: dict[str, Any]) -> None:
    with pytest.raises(TooLarge):
        grammar_schema("schema", schema)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "integer", "minimum": 5, "maximum": 3}, "no value"),
        ({"$ref": "#/$defs/missing"}, "refers to nothing"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "can't be turned"),
        ({"allOf": [{"$ref": "#"}]}, "can't be turned"),
        ({"type": "string", "pattern": "a(?=b)"}, "look-around"),
        ({"type": "string", "pattern": "(a)\\1"}, "look-around"),
        ({"type": "string", "pattern": "("}, "can't be read"),
        ({"oneOf": [{"type": "string"}, {"maxLength": 3}]}, "use anyOf"),
        ({"patternProperties": {"a": True, "b": True}}, "exclude each other"),
    ],
)
def test_what_the_library_refuses_is_said_in_our_words(
    schema: dict[str, Any], said: str, compiler: GrammarCompiler
) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        compiler.compile(schema_format("schema", schema))
    assert caught.value.param == "schema"
    assert "json-schema:" not in caught.value.message


@pytest.mark.parametrize(
    ("schema", "taken", "refused"),
    [
        ({"type": "string", "format": "date"}, '"2026-11-29"', '"2026-13-01"'),
        ({"type": "string", "format": "uuid"}, '"123e4567-e89b-12d3-a456-426614174000"', '"1"'),
        ({"type": "number", "minimum": -1, "exclusiveMaximum": 2.5}, "2.49", "2.5"),
        ({"type": "integer", "multipleOf": 7}, "49", "50"),
        ({"type": "string", "pattern": "b"}, '"abc"', '"ac"'),
        ({"type": "string", "maxLength": 2}, '"é😀"', '"abc"'),
        ({"type": ["string", "null"]}, "null", "1"),
        ({"const": {"a": [1]}}, '{"a":[1]}', '{"a":[2]}'),
        ({"type": "array", "prefixItems": [{"const": 1}], "items": False}, "[1]", "[1,1]"),
        ({"oneOf": [{"const": "a"}, {"const": "b"}]}, '"b"', '"c"'),
        ({}, "[null]", "[nul]"),
    ],
)
def test_a_keyword_is_kept(
    schema: dict[str, Any], taken: str, refused: str, compiler: GrammarCompiler
) -> None:
    grammar = compiler.compile(schema_format("schema", schema))
    assert takes(grammar, taken)
    assert not takes(grammar, refused)


def test_options_of_the_library_in_a_schema_change_nothing(compiler: GrammarCompiler) -> None:
    lenient = {"x-guidance": {"lenient": True, "whitespace_flexible": True}, "type": "array"}
    assert not takes(compiler.compile(schema_format("schema", lenient)), "[  ]")
    with pytest.raises(InvalidRequest):
        compiler.compile(schema_format("schema", {**lenient, "not": {}}))
