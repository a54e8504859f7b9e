"""The field `loras` as JSON and as V2's text."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.errors import InvalidRequest
from predictors.protocol.openai.images_body import read_images_body
from predictors.protocol.openai.lora_fields import (
    MAX_LORAS,
    MAX_TEXT,
    is_adapter_name,
    loras,
    read_loras_text,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "scale", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def test_names_and_scales_are_read_in_order() -> None:
    body = {"model": "flux", "prompt": "a", "loras": [{"name": "b", "scale": -4}, {"name": "a"}]}
    assert read_images_body(body).loras == (("b", -4.0), ("a", 1.0))
    assert read_images_body(body | {"loras": []}).loras == ()
    assert read_images_body(body | {"loras": None}).loras is None
    assert read_loras_text('[{"name": "a.b@2", "scale": 0}]') == (("a.b@2", 0.0),)
    assert read_loras_text('[{"name": "a", "scale": null}]') == (("a", 1.0),)


WRONG: list[tuple[Any, str, str]] = [
    ("a", "loras", "loras must be a list of adapters, not 'a'"),
    ({"name": "a"}, "loras", "loras must be a list of adapters, not an object"),
    (["a"], "loras[0]", "loras[0] must be a JSON object"),
    ([{"name": "a"}, {}], "loras[1].name", "loras[1].name is required"),
    ([{"name": "a", "weight": 1}], "loras[0].weight", "unknown field 'loras[0].weight'"),
    ([{"name": 1}], "loras[0].name", "loras[0].name must be the name of an adapter"),
    ([{"name": "a/b"}], "loras[0].name", "loras[0].name must be the name of an adapter"),
    ([{"name": "a" * 65}], "loras[0].name", "1 to 64 letters"),
    ([{"name": "a", "scale": 4.01}], "loras[0].scale", "a number from -4 to 4, not 4.01"),
    ([{"name": "a", "scale": "1"}], "loras[0].scale", "a number from -4 to 4, not '1'"),
    ([{"name": "a", "scale": True}], "loras[0].scale", "a number from -4 to 4, not true"),
    ([{"name": "a"}] * (MAX_LORAS + 1), "loras", "loras has 9 adapters; at most 8 are taken"),
]


@pytest.mark.parametrize(("value", "param", "message"), WRONG, ids=[m for *_, m in WRONG])
def test_what_is_wrong_is_named_on_both_protocols(value: Any, param: str, message: str) -> None:
    for read in (lambda: loras("loras", value), lambda: read_loras_text(json.dumps(value))):
        with pytest.raises(InvalidRequest, match=re.escape(message)) as caught:
            read()
        assert caught.value.param == param


@pytest.mark.parametrize(
    "text", ["", "a:0.8", "[", '[{"name": "a", "name": "b"}]', "[NaN]", "[" * 40, "\ud800"],
    ids=["empty", "pairs", "cut", "twice", "nan", "deep", "half a character"],
)  # fmt: skip
def test_a_text_that_is_no_json_is_refused_by_its_parameter(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^loras .* it is a text such as") as caught:
        read_loras_text(text)
    assert caught.value.param == "loras"
    assert "body" not in caught.value.message


def test_a_long_text_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(InvalidRequest, match="loras has 4097 characters; at most 4096"):
        read_loras_text("[" * (MAX_TEXT + 1))


@given(JSON)
def test_any_value_is_read_or_refused_by_name(value: object) -> None:
    refused: InvalidRequest | None = None
    found: Any = ()
    try:
        found = loras("loras", value)
    except InvalidRequest as error:
        refused = error
    if refused is not None:
        assert str(refused.param).startswith("loras")
        assert len(refused.message) < 300
    assert all(is_adapter_name(name) and -4 <= scale <= 4 for name, scale in found)


@given(st.text(max_size=70))
def test_a_name_of_an_adapter_never_ends_a_models_name_twice(name: str) -> None:
    if is_adapter_name(name):
        assert f"flux:{name}".rpartition(":") == ("flux", ":", name)
