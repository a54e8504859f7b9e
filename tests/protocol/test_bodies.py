"""Bodies within limits, media types, and JSON that means one thing only."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    TooLarge,
    UnsupportedMedia,
)
from predictors.protocol import bodies
from predictors.protocol.bodies import check_media, parse_json, read_body

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)  # fmt: skip


def arriving(*messages: dict[str, Any]) -> Any:
    """An ASGI `receive` that gives these messages."""
    queue = list(messages)

    async def receive() -> dict[str, Any]:
        return queue.pop(0)

    return receive


def parts(chunks: Iterable[bytes]) -> list[dict[str, Any]]:
    found = [{"type": "http.request", "body": x, "more_body": True} for x in chunks]
    return [*found, {"type": "http.request", "body": b"", "more_body": False}]


# -- JSON ------------------------------------------------------------------------------------------
@settings(max_examples=50)
@given(VALUES)
def test_whatever_json_can_say_is_read_as_python_reads_it(value: Any) -> None:
    for raw in (json.dumps(value).encode(), json.dumps(value, ensure_ascii=False).encode()):
        assert parse_json(raw) == json.loads(raw)


@settings(max_examples=50)
@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_but_a_refusal(raw: bytes) -> None:
    try:
        parse_json(raw)
    except InvalidRequest as error:
        assert error.message  # noqa: PT017 -- most bytes are refused, some are JSON


@settings(max_examples=50)
@given(VALUES)
def test_json_cut_anywhere_is_refused(value: Any) -> None:
    raw = json.dumps([value]).encode()
    for end in range(len(raw)):
        with pytest.raises(InvalidRequest):
            parse_json(raw[:end])


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert parse_json(rb'"\ud83e\udd8a"') == "🦊"
    assert parse_json(rb'"\\ud800"') == "\\ud800"


def test_depth_counts_outside_of_strings() -> None:
    brackets = "[" * 500 + '"' + "{" * 500
    assert parse_json(json.dumps({"a": brackets}).encode()) == {"a": brackets}
    wide: dict[str, Any] = {"a": [[i] for i in range(500)]}
    assert parse_json(json.dumps(wide).encode()) == wide
    with pytest.raises(InvalidRequest, match="nested deeper than 32"):
        parse_json(b"[" * 33 + b"]" * 33)


def test_a_million_tiny_values_are_too_many() -> None:
    with pytest.raises(TooLarge, match="more than 1048576 values"):
        parse_json(b"[" + b"0," * (2**20 + 1) + b"0]")


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
def test_what_two_readers_could_understand_differently_is_refused(raw: bytes, words: str) -> None:
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
        {"content-type": "application/json", "content-encoding": "identity"},
    ],
)
def test_json_under_its_names_is_accepted(headers: dict[str, str]) -> None:
    check_media(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/jsonp"},
        {"content-type": "application/octet-stream"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-encoding": "gzip"},
        {"content-encoding": "gzip, identity"},
    ],
)
def test_anything_else_is_not(headers: dict[str, str]) -> None:
    with pytest.raises(UnsupportedMedia):
        check_media(headers)


# -- bodies ----------------------------------------------------------------------------------------
async def test_a_body_in_pieces_is_the_body() -> None:
    receive = arriving(*parts([b"ab", b"", b"c"]))
    assert await read_body(receive, {}, 3) == b"abc"


async def test_a_body_that_says_it_is_too_large_is_not_even_read() -> None:
    with pytest.raises(TooLarge, match="limit of 10 bytes"):
        await read_body(arriving(), {"content-length": "11"}, 10)
    with pytest.raises(TooLarge):
        await read_body(arriving(), {"content-length": "9" * 100}, 10)


async def test_a_body_is_read_no_further_than_the_limit() -> None:
    rest = parts([b"x" * 6] * 100)
    receive = arriving(*rest)
    with pytest.raises(TooLarge):
        await read_body(receive, {}, 10)
    assert (await receive())["body"] == b"x" * 6  # the third of a hundred was not taken
    whole = arriving({"type": "http.request", "body": b"x" * 11})
    with pytest.raises(TooLarge):
        await read_body(whole, {}, 10)


async def test_a_caller_that_leaves_in_the_middle_has_cancelled() -> None:
    for before in ([], parts([b"a"])[:1]):
        with pytest.raises(Cancelled):
            await read_body(arriving(*before, {"type": "http.disconnect"}), {}, 10)


async def test_a_body_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.01)
    first = parts([b"a"])[0]

    async def receive() -> dict[str, Any]:
        nonlocal first
        if first:
            found, first = first, {}
            return found
        return await asyncio.get_running_loop().create_future()

    with pytest.raises(DeadlineExceeded, match="the body took longer"):
        await read_body(receive, {}, 10)


@pytest.mark.parametrize("inside", ["AAAA", "A\\/A", "A[[{{,,", "", "\\u00e9"])
def test_a_file_in_a_body_is_parsed_like_any_string(inside: str) -> None:
    raw = f'{{"a": ["x;base64,{inside}", ";base64,{inside}", "[\\"]"], "b": 1}}'.encode()
    assert parse_json(raw) == json.loads(raw)


def test_a_picture_may_hold_what_would_be_too_many_values() -> None:
    assert parse_json(b'["a;base64,%b"]' % (b"," * 2**21)) == ["a;base64," + "," * 2**21]


@pytest.mark.parametrize(
    "raw",
    [
        b'["a;base64,AA\\ud800AA"]',  # half of a pair, in a file
        b'["a;base64,AA", "\\ud800"]',
        b'["a;base64,AA", ' + b"[" * 40 + b"]" * 40 + b"]",
        b"[" * 40 + b'"a;base64,AA"' + b"]" * 40,
        b";base64," + b"[" * 100_000 + b'"',
        b'["a";base64,' + b"[" * 100_000 + b'"',
        b'["a;base64,AAAA',
    ],
)
def test_a_file_hides_nothing_from_the_checks(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_json(raw)
