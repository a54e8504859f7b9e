"""V2 parameters that are JSON in a text."""

from __future__ import annotations

import pytest

from predictors.errors import InvalidRequest
from predictors.protocol.openai.json_texts import parse_json_text


def test_a_text_is_read_up_to_its_limit() -> None:
    assert parse_json_text("tools", '[1, "\u00fc"]', 8) == [1, "\u00fc"]
    with pytest.raises(InvalidRequest, match=r"^tools has 8 characters; at most 7") as caught:
        parse_json_text("tools", '[1, "\u00fc"]', 7)
    assert caught.value.param == "tools"


@pytest.mark.parametrize("text", ["{", "", '"\ud800"', "NaN"])
def test_what_is_no_json_is_refused_by_the_parameters_name(text: str) -> None:
    for example, end in (("[42]", "; it is a text such as '[42]'"), ("", "")):
        with pytest.raises(InvalidRequest, match="ids") as caught:
            parse_json_text("ids", text, 10, example)
        assert caught.value.param == "ids"
        assert "the body" not in caught.value.message
        assert caught.value.message.endswith(end)
        assert ("such as" in caught.value.message) == bool(example)
