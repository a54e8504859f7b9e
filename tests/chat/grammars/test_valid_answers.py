"""Grammars take only what is valid against their schema: texts at the edge of each keyword, where
the library alone would take wrong ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from predictors.chat.grammars.compiler import GrammarCompiler
from predictors.errors import InvalidRequest
from predictors.protocol.answer_format import schema_format
from tests.chat.grammars.walks import takes

WHOLE = 2**53
SNOWFLAKE = 1234567890123456789  # an id as Discord and X have them


@pytest.mark.parametrize(
    ("form", "valid", "invalid"),
    [
        ("date", "2024-02-29", "2023-02-29"),
        ("date", "2000-02-29", "1900-02-29"),
        ("date", "0400-02-29", "0100-02-29"),
        ("date", "2023-12-31", "2023-04-31"),
        ("date", "1999-01-01", "1999-00-01"),
        ("time", "23:59:59Z", "23:59:60Z"),
        ("time", "00:00:00.5+23:59", "24:00:00Z"),
        ("time", "12:00:00-00:00", "12:00:00+24:00"),
        ("hostname", "0" * 63 + ".a", "0" * 64 + ".a"),
        ("hostname", ".".join(["0" * 63] * 3 + ["0" * 61]), ".".join(["0" * 63] * 4)),
        ("date-time", "2024-02-29T12:00:00Z", "2023-02-29T12:00:00Z"),
        ("date-time", "1998-12-31T23:59:59.123456789Z", "1998-12-31T23:58:60Z"),
    ],
)
def test_dates_times_and_names_exist(
    form: str, valid: str, invalid: str, compiler: GrammarCompiler
) -> None:
    for schema in ({"type": "string", "format": form}, {"format": form, "pattern": "^[0-2]"}):
        grammar = compiler.compile(schema_format("schema", schema))
        assert takes(grammar, json.dumps(valid))
        assert not takes(grammar, json.dumps(invalid))


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"minimum": WHOLE + 1}, [WHOLE + 2, WHOLE + 3], [WHOLE - 1, WHOLE]),
        ({"exclusiveMinimum": WHOLE + 1}, [WHOLE + 8], [WHOLE, WHOLE + 1]),
        ({"maximum": -WHOLE - 1}, [-WHOLE - 2], [-WHOLE, 1]),
        ({"exclusiveMaximum": -WHOLE - 1}, [-WHOLE - 8], [-WHOLE, -WHOLE - 1]),
        ({"minimum": -(2**63), "maximum": 2**63 - 1}, [0, 10**17, -(10**17)], [2**63, -(2**64)]),
        ({"minimum": 0, "maximum": 2**64 - 1}, [0, 10**18], [-1, 2**64]),
        ({"minimum": 10**18}, [10**18, 2**62], [0, 10**18 - 2]),
        ({"exclusiveMinimum": 2**60}, [2**60 + 2**10, 2**62], [0, 2**60 - 2**10]),
        ({"maximum": -(10**18)}, [-(10**18), -(2**62)], [0, -(10**18) + 2]),
        ({"maximum": 1.7e299}, [-5, 0, 10**17], []),
    ],
)
def test_bounds_that_are_no_doubles_let_no_number_beyond_them(
    schema: dict[str, Any], valid: list[int], invalid: list[int], compiler: GrammarCompiler
) -> None:
    for kind in ("integer", "number"):
        grammar = compiler.compile(schema_format("schema", {"type": kind, **schema}))
        assert all(takes(grammar, str(number)) for number in valid)
        assert not any(takes(grammar, str(number)) for number in invalid)


@pytest.mark.parametrize(
    "schema",
    [
        {"const": SNOWFLAKE},
        {"enum": ["a", SNOWFLAKE]},
        {"const": {"id": [SNOWFLAKE]}},
        {"enum": [-SNOWFLAKE]},
        {"const": 10**400},
        {"const": 2**63},
        {"const": -(2**63)},
        {"enum": [1, 15951564530274336768]},
        {"const": 2**70},
    ],
)
def test_a_number_that_can_not_be_written_to_its_last_digit_is_refused(
    schema: dict[str, Any], compiler: GrammarCompiler
) -> None:
    with pytest.raises(InvalidRequest, match="can't be written to the last digit; make it text"):
        compiler.compile(schema_format("schema", schema))


@pytest.mark.parametrize(
    "number",
    [WHOLE, SNOWFLAKE // 2**10 * 2**10, -(2**60), 2**63 - 2**10, 10**19, -(10**20), 5, 0.1],
)
def test_a_number_that_can_is_kept(number: float, compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(schema_format("schema", {"enum": [number]}))
    assert takes(grammar, json.dumps(number))


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"type": "integer"}}},
        {"properties": {"a": False}},
        {"properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
        {
            "patternProperties": {"^[ab]$": {"type": "integer"}},
            "additionalProperties": {"type": "string"},
        },
        {"properties": {"b": {}}, "patternProperties": {"a": {"type": "integer"}}},
    ],
)
def test_a_name_in_escapes_is_no_way_around_its_property(
    schema: dict[str, Any], compiler: GrammarCompiler
) -> None:
    grammar = compiler.compile(schema_format("schema", {"type": "object", **schema}))
    assert not takes(grammar, r'{"\u0061":"x"}')
    assert takes(grammar, '{"c":"x"}')


@pytest.mark.parametrize(
    "schema",
    [{"const": "a\0"}, {"enum": ["\x7f"]}, {"properties": {"\x1f": True}}, {"required": ["\x01"]}],
)
def test_control_characters_that_no_answer_has_are_refused(
    schema: dict[str, Any], compiler: GrammarCompiler
) -> None:
    with pytest.raises(InvalidRequest, match="control character"):
        compiler.compile(schema_format("schema", schema))
    kept = compiler.compile(schema_format("schema", {"const": "\b\t\n\f\r"}))
    assert takes(kept, r'"\b\t\n\f\r"')


def test_a_bound_that_no_answer_reaches_is_refused_by_its_own_words(
    compiler: GrammarCompiler,
) -> None:
    for schema in ({"minimum": 1e30}, {"maximum": -1e30}):
        with pytest.raises(InvalidRequest, match=r"imum is beyond 9e\+18"):
            compiler.compile(schema_format("schema", {"type": "number", **schema}))


@pytest.mark.parametrize(
    ("pattern", "valid", "invalid"),
    [
        (r"^\d+$", ["0", "99"], ["\u0663", "9\u0663", "a"]),
        (r"^[\d-]+$", ["9-", "-"], ["\u0663", "a"]),
        (r"^\w$", ["a", "_", "Z", "5"], ["\u00e9", "\u0663", "-"]),
        (r"^[^\w]$", ["\u00e9", "-"], ["a", "_"]),
        (r"^\D$", ["\u0663", "a"], ["5"]),
        (r"^[\W\d]$", ["\u00e9", "5", "-"], ["a"]),
        (r"^\\d$", [r"\d"], ["5", r"\5"]),
        (r"^\\\d$", [r"\5"], [r"\d", "5"]),
    ],
)
def test_digits_and_words_of_a_schema_are_those_of_ascii(
    pattern: str, valid: list[str], invalid: list[str], compiler: GrammarCompiler
) -> None:
    named = {"patternProperties": {pattern: {}}, "additionalProperties": False, "type": "object"}
    for schema, wrapped in (
        ({"type": "string", "pattern": pattern}, "{}"),
        (named, "{{{}:1}}"),
    ):
        grammar = compiler.compile(schema_format("schema", schema))
        for text in valid:
            assert takes(grammar, wrapped.format(json.dumps(text, ensure_ascii=False)))
        for text in invalid:
            assert not takes(grammar, wrapped.format(json.dumps(text, ensure_ascii=False)))
