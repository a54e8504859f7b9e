"""Variables of the chat template, and where the prompt ends."""

from __future__ import annotations

import json
from typing import Any

import pytest

from predictors.errors import InvalidRequest
from predictors.protocol.openai.chat_body import ChatBody, read_chat_body
from predictors.protocol.openai.template_fields import AS_USUAL, TemplateFields, template_text

HELLO = {"role": "user", "content": "hello"}
SAID = {"role": "assistant", "content": "the answer"}


def read(*messages: dict[str, Any], **fields: Any) -> ChatBody:
    return read_chat_body({"model": "qwen-vl", "messages": list(messages or (HELLO,)), **fields})


def test_a_body_without_these_fields_shares_one_value() -> None:
    assert read().template is AS_USUAL


def test_variables_are_kept_as_json_with_their_names_in_order() -> None:
    given = {"b": [1, {"d": None, "c": "ü"}], "a": True}
    expected = '{"a": true, "b": [1, {"c": "ü", "d": null}]}'
    assert read(chat_template_kwargs=given).template.chat_template_kwargs == expected
    assert template_text(json.dumps(given)) == expected


def test_an_answer_may_go_on_with_an_assistants_message() -> None:
    expected = TemplateFields(continue_final_message=True)
    assert read(HELLO, SAID, continue_final_message=True).template == expected
    fields = {"continue_final_message": True, "add_generation_prompt": False}
    assert read(HELLO, SAID, **fields).template.add_generation_prompt is False
    assert read(add_generation_prompt=False).template.add_generation_prompt is False


@pytest.mark.parametrize(
    ("last", "fields", "match"),
    [
        (SAID, {"add_generation_prompt": True}, "both true"),
        (HELLO, {}, "last one is of role user"),
        ({"role": "system", "content": "x"}, {}, "last one is of role system"),
        ({"role": "assistant", "content": ""}, {}, "no text"),
        ({"role": "assistant", "content": " \n"}, {}, "no text"),
    ],
    ids=["both", "user", "system", "empty", "blank"],
)
def test_a_message_that_cant_be_gone_on_with_is_refused(
    last: dict[str, Any], fields: dict[str, Any], match: str
) -> None:
    with pytest.raises(InvalidRequest, match=match) as refused:
        read(HELLO, last, continue_final_message=True, **fields)
    assert refused.value.param == "continue_final_message"


@pytest.mark.parametrize(
    "value",
    [
        [],
        "x",
        {str(i): 1 for i in range(17)},
        {"a": "x" * 16_385},
        {"a": 1_000_001},
        {"a": -1e9},
        {"a": [{"b": 10**30}]},
        {"a" * 17_000: 1},
    ],
    ids=["list", "text", "many", "long", "large", "low", "nested", "name"],
)
def test_variables_are_bounded(value: Any) -> None:
    for ask in (lambda: read(chat_template_kwargs=value), lambda: template_text(json.dumps(value))):
        with pytest.raises(InvalidRequest) as refused:
            ask()
        assert str(refused.value.param).startswith("chat_template_kwargs")
        assert len(refused.value.message) < 300


def test_a_text_that_is_no_json_is_refused_with_an_example() -> None:
    with pytest.raises(InvalidRequest, match="such as") as refused:
        template_text("{")
    assert refused.value.message.startswith("chat_template_kwargs")
