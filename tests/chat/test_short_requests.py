"""Which prompts are short enough to be assembled on the event loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from predictors.chat.request import (
    SHORT_CHARS,
    SHORT_PARTS,
    ChatRequest,
    Message,
    Picture,
    PromptOptions,
)
from predictors.chat.sampling import GREEDY
from predictors.protocol.answer_format import AnswerFormat


def of(*messages: Message, **given: Any) -> ChatRequest:
    return replace(ChatRequest(messages, GREEDY, seed=0), **given)


SHORT = Message("user", ("a red circle",))
VARIABLES = PromptOptions(variables='{"documents": ["x"]}')


@pytest.mark.parametrize(
    ("asked", "is_short"),
    [
        (of(SHORT), True),
        (of(*[SHORT] * SHORT_PARTS), True),
        (of(Message("user", ("x" * SHORT_CHARS,))), True),
        (of(Message("user", ("x" * (SHORT_CHARS + 1),))), False),
        (of(*[Message("user", ("",))] * (SHORT_PARTS + 1)), False),
        (of(Message("user", ("",) * (SHORT_PARTS + 1))), False),
        (of(Message("user", (Picture(b"file"),))), False),
        (of(Message("tool", ("15",), call_id="c" * 10**6)), False),
        (of(raw_prompt="x" * SHORT_CHARS), True),
        (of(raw_prompt="x" * (SHORT_CHARS + 1)), False),
        (of(raw_prompt=(1,) * (SHORT_CHARS // 4 + 1)), False),
        (of(SHORT, answer_format=AnswerFormat("json", "{}")), False),
        (of(SHORT, prompt=VARIABLES), False),
    ],
)
def test_a_prompt_is_short_whose_parts_are_few_and_whose_text_is_little(
    asked: ChatRequest, is_short: bool
) -> None:
    assert asked.is_short is is_short
