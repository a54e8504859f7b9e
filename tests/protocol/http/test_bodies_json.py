"""JSON bodies: limits, media types, and refusal of everything ambiguous."""

from __future__ import annotations

import contextlib
import json
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.errors import (
    InvalidRequest,
    TooLarge,
    UnsupportedMedia,
)
from predictors.protocol.http.bodies import MAX_VALUES, check_media, parse_json
from tests.cpu_time import assert_linear

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)  # fmt: skip


# -- JSON ------------------------------------------------------------------------------------------
@settings(max_examples=50)
@given(VALUES)
def test_valid_json_is_parsed_as_by_python(value: Any) -> None:
    for raw in (json.dumps(value).encode(), json.dumps(value, ensure_ascii=False).encode()):
        assert parse_json(raw) == json.loads(raw)


@settings(max_examples=50)
@given(st.binary(max_size=60))
def test_arbitrary_bytes_raise_only_invalid_request(raw: bytes) -> None:
    try:
        parse_json(raw)
    except InvalidRequest as error:
        assert error.message  # noqa: PT017 -- most bytes are refused, some are JSON


@settings(max_examples=50)
@given(VALUES)
def test_truncated_json_is_refused(value: Any) -> None:
    raw = json.dumps([value]).encode()
    for end in range(len(raw)):
        with pytest.raises(InvalidRequest):
            parse_json(raw[:end])


def test_a_surrogate_pair_is_one_character() -> None:
    assert parse_json(rb'"\ud83e\udd8a"') == "🦊"
    assert parse_json(rb'"\\ud800"') == "\\ud800"


def test_brackets_in_strings_do_not_count_as_depth() -> None:
    brackets = "[" * 500 + '"' + "{" * 500
    assert parse_json(json.dumps({"a": brackets}).encode()) == {"a": brackets}
    wide: dict[str, Any] = {"a": [[i] for i in range(500)]}
    assert parse_json(json.dumps(wide).encode()) == wide
    with pytest.raises(InvalidRequest, match="nested deeper than 32"):
        parse_json(b"[" * 33 + b"]" * 33)


@pytest.mark.parametrize(
    "raw",
    [
        b"[" + b"0," * (MAX_VALUES + 1) + b"0]",
        b"[" + b'"",' * (MAX_VALUES + 1) + b"0]",
        b"[" + b'"\\\\",' * (MAX_VALUES + 1) + b"0]",
        b"[" + b"[]," * MAX_VALUES + b"{}" * 2 + b"]",
        b"[]" * (MAX_VALUES + 1),
        b'"' * (2 * MAX_VALUES + 1),
    ],
    ids=["numbers", "strings", "escaped strings", "lists", "nothing but lists", "quotes"],
)
def test_too_many_values_are_refused_before_they_are_built(raw: bytes) -> None:
    with pytest.raises(TooLarge, match="more than 131072 values"):
        parse_json(raw)


def test_commas_in_strings_are_not_counted_as_values() -> None:
    text = ',[]{}"' * MAX_VALUES
    assert parse_json(json.dumps([text]).encode()) == [text]


def test_a_number_with_too_many_digits_is_refused() -> None:
    assert parse_json(b"[%b]" % (b"1" * 1000)) == [int("1" * 1000)]
    for number in (b"1" * 1001, b"0." + b"1" * 1000, b"1e" + b"0" * 1000):
        with pytest.raises(InvalidRequest, match="number that is too long"):
            parse_json(b"[%b]" % number)


REPEATED = {
    "a string without an end": (b"[" * 33, b'"\\', b""),
    "escapes": (b'["', b"\\n", b'"]'),
    "escaped characters": (b'["', b"\\u0041", b'"]'),
    "spaces": (b"[" * 33, b" ", b"]" * 33),
    "brackets": (b"", b"[]", b""),
    "quotes": (b"", b'"', b""),
    "files": (b'["', b";base64,", b'"]'),
    "files that end": (b'["', b';base64,"', b'"]'),
    "digits": (b"[", b"1", b"]"),
    "backslashes": (b'["', b"\\\\", b'"]'),
    "surrogates": (b'["', b"\\ud83e\\udd8a", b'"]'),
}


@pytest.mark.parametrize(("head", "body", "tail"), REPEATED.values(), ids=REPEATED)
def test_parsing_time_is_linear_in_the_body(head: bytes, body: bytes, tail: bytes) -> None:
    def parsing(raw: bytes) -> None:
        with contextlib.suppress(InvalidRequest):
            parse_json(raw)

    assert_linear(lambda count: partial(parsing, head + body * count + tail), 50_000)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"a": 1, "a": 2}', "'a' twice"),
        (b'{"a": 1, "\\u0061": 2}', "'a' twice"),
        (b"[NaN]", "NaN"),
        (b"[1e400]", "too large"),
        (b"[-1E+999]", "too large"),
        (b"9" * 5000, "too long"),
        (b'["\\ud800"]', "not valid JSON"),
        (b'["\\uDFFF"]', "not valid JSON"),
        (b'["\\ud800\\u0041"]', "not valid JSON"),
        (b"\xff", "not UTF-8"),
        (b'["\xed\xa0\x80"]', "not UTF-8"),
        (b"", "line 1 column 1"),
        (b'{\n"a": }', "line 2 column 6"),
    ],
)
def test_ambiguous_json_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        parse_json(raw)


# -- media types -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "application/json"},
        {"content-type": "Application/JSON"},
        {"content-type": "application/json; charset=utf-8"},
        {"content-type": 'application/json;charset="UTF-8"'},
        {"content-type": "application/json; profile=x"},
    ],
)
def test_json_content_types_are_accepted(headers: dict[str, str]) -> None:
    check_media(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/jsonp"},
        {"content-type": "application/octet-stream"},
        {"content-type": "application/json; charset=latin-1"},
    ],
)
def test_other_content_types_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(UnsupportedMedia):
        check_media(headers)


@pytest.mark.parametrize("inside", ["AAAA", "A\\/A", "A[[{{,,", "", "\\u00e9"])
def test_a_file_in_a_body_is_parsed_like_any_string(inside: str) -> None:
    raw = f'{{"a": ["x;base64,{inside}", ";base64,{inside}", "[\\"]"], "b": 1}}'.encode()
    assert parse_json(raw) == json.loads(raw)


def test_base64_of_a_picture_is_not_counted_as_values() -> None:
    assert parse_json(b'["a;base64,%b"]' % (b"," * 2**21)) == ["a;base64," + "," * 2**21]


@pytest.mark.parametrize(
    "raw",
    [
        b'["a;base64,AA\\ud800AA"]',  # a lone surrogate inside a data URL
        b'["a;base64,AA", "\\ud800"]',
        b'["a;base64,AA", ' + b"[" * 40 + b"]" * 40 + b"]",
        b"[" * 40 + b'"a;base64,AA"' + b"]" * 40,
        b";base64," + b"[" * 100_000 + b'"',
        b'["a";base64,' + b"[" * 100_000 + b'"',
        b'["a;base64,AAAA',
    ],
)
def test_a_data_url_cannot_hide_values_from_the_checks(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_json(raw)
