"""A form's texts become the values that the same body in JSON has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.errors import InvalidRequest, TooLarge
from predictors.protocol.http.multipart import Part
from predictors.protocol.openai.edits_body import FIELDS
from predictors.protocol.openai.fields import (
    DescribedRule,
    described,
    flag,
    list_of,
    number,
    object_schema,
    text,
    whole,
)
from predictors.protocol.openai.forms import MAX_TEXT_BYTES, body_of_form, value_of

PAIR = {"name": text(), "scale": number(-4, 4)}


@described(object_schema(PAIR, "name"))
def pair(name: str, value: Any) -> Any:
    return value


RULES: Mapping[str, DescribedRule] = {
    "prompt": text(),
    "tier": text(),
    "n": whole(1, 9),
    "scale": number(0, 1),
    "flag": flag,
    "tags": list_of(text(), at_most=4, noun="tags"),
    "sizes": list_of(whole(1, 9), at_most=4, noun="sizes"),
    "pairs": list_of(pair, at_most=4, noun="pairs"),
    "pair": pair,
}


def body(*sent: tuple[str, str | bytes]) -> dict[str, Any]:
    parts = [
        Part(name, value, True) if isinstance(value, bytes) else Part(name, value.encode(), False)
        for name, value in sent
    ]
    return body_of_form(parts, RULES, files=("image",), may_be_empty=("prompt",))


@pytest.mark.parametrize(
    ("name", "written", "value"),
    [
        ("prompt", "28", "28"),
        ("prompt", "", ""),
        ("tier", "", None),
        ("n", "28", 28),
        ("n", "28.0", 28.0),
        ("n", "-1", -1),
        ("n", "", None),
        ("n", "two", "two"),
        ("n", "1_000", "1_000"),
        ("n", "１", "１"),
        ("n", "1" * 33, "1" * 33),
        ("scale", "1e-1", 0.1),
        ("scale", ".", "."),
        ("scale", "nan", "nan"),
        ("scale", "infinity", "infinity"),
        ("flag", "true", True),
        ("flag", "False", False),
        ("flag", "1", "1"),
        ("pair", '{"name": "a"}', {"name": "a"}),
        ("pair", "{", "{"),
        ("pairs", "[" * 1000, "[" * 1000),
        ("pairs", '[{"name": "a", "name": "b"}]', '[{"name": "a", "name": "b"}]'),
        ("unknown", "1", "1"),
    ],
)
def test_a_text_stands_for_the_value_of_its_rule(name: str, written: str, value: object) -> None:
    found = body((name, written))
    assert found == {name: value}
    assert type(found[name]) is type(value)


def test_brackets_spread_lists_and_objects_as_the_openai_client_does() -> None:
    assert body(("tags[]", "a"), ("tags[]", "b")) == {"tags": ["a", "b"]}
    assert body(("sizes[]", "1")) == {"sizes": [1]}
    assert body(("pair[name]", "1"), ("pair[scale]", "2")) == {"pair": {"name": "1", "scale": 2}}
    by_column = [("pairs[][name]", "a"), ("pairs[][name]", "b")]
    by_column += [("pairs[][scale]", "1"), ("pairs[][scale]", "0.5")]
    both = {"pairs": [{"name": "a", "scale": 1}, {"name": "b", "scale": 0.5}]}
    assert body(*by_column) == both
    assert body(*(by_column[i] for i in (0, 2, 1, 3))) == both


def test_files_are_bytes_or_a_list_of_them_and_empty_ones_are_absent() -> None:
    assert body(("image", b"1")) == {"image": b"1"}
    assert body(("image", b"1"), ("image", b"2"), ("image", b"3")) == {"image": [b"1", b"2", b"3"]}
    assert body(("image[]", b"1")) == {"image": [b"1"]}
    assert body(("image[0]", b"1"), ("image[1]", b"2")) == {"image": [b"1", b"2"]}
    assert body(("image", b"1"), ("image[]", b"2")) == {"image": [b"1", b"2"]}
    assert body(("image", b""), ("prompt", "x")) == {"prompt": "x"}


@pytest.mark.parametrize(
    ("sent", "reason", "param"),
    [
        ([("prompt", "a"), ("prompt", "b")], "'prompt' is in the form 2 times", "prompt"),
        ([("pair[name]", "a"), ("pair[name]", "b")], r"'pair\[name\]' is in .* twice", "pair"),
        ([("pairs[][name]", "a"), ("pairs[][scale]", "1"), ("pairs[][scale]", "2")],
         r"differ in number: 'pairs\[\]\[name\]' 1, 'pairs\[\]\[scale\]' 2", "pairs"),
        ([("n", "1"), ("n[]", "2")], "can't be read beside", "n"),
        ([("pairs[][][x]", "1")], "can't be read beside", "pairs"),
        ([("pair[a][b]", "1")], "can't be read beside", "pair"),
        ([("image[a]", b"1")], r"a file can't be named 'image\[a\]'", "image"),
        ([("image[][]", b"1")], "a file can't be named", "image"),
        ([("prompt", b"\xff")], "prompt is not UTF-8", "prompt"),
    ],
)  # fmt: skip
def test_fields_that_contradict_each_other_are_refused_by_name(
    sent: list[tuple[str, str | bytes]], reason: str, param: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        body(*sent)
    assert caught.value.param == param


def test_a_text_of_more_bytes_than_are_read_is_refused_with_both_numbers() -> None:
    with pytest.raises(TooLarge, match=f"has {MAX_TEXT_BYTES + 1} bytes; at most {MAX_TEXT_BYTES}"):
        body(("prompt", "x" * (MAX_TEXT_BYTES + 1)))


@given(st.lists(st.tuples(st.text(alphabet="ab[]0\xff", max_size=6), st.text(max_size=3))))
def test_any_names_make_a_body_or_are_refused(sent: list[tuple[str, str]]) -> None:
    try:
        found = body(*[(f"pairs{name}", text) for name, text in sent], *sent)
    except InvalidRequest:
        return
    assert all(isinstance(name, str) for name in found)


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_field_of_an_edit_has_values_that_a_form_can_write(name: str) -> None:
    schema = FIELDS[name].schema
    for value in schema.get("enum", ()):
        written = value if isinstance(value, str) else str(value)
        assert value_of(written, schema) == value
