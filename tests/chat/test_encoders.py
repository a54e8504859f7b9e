"""Bodies of all chat routes become requests of one model. A field for less reasoning is refused on
each route by a model that always reasons, and changes nothing for others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from predictors.chat.codec import ChatCodec
from predictors.chat.encoders import requests_of
from predictors.chat.pixel_bounds import PixelLimits
from predictors.chat.request import Sampling
from predictors.errors import InvalidRequest
from predictors.protocol.anthropic.messages_body import read_count_body, read_messages_body
from predictors.protocol.openai.chat_body import FIELDS, read_chat_body
from predictors.protocol.openai.completions_body import read_completions_body
from predictors.protocol.openai.reasoning_fields import LIMITS_OF_REASONING
from predictors.protocol.openai.responses_body import read_responses_body

CODEC = ChatCodec(Sampling(), "float32", 3, PixelLimits(3136, 1_100_000, 1_000_000, 784))
REASONER = replace(CODEC, opens_thinking=True)
MESSAGES = [{"role": "user", "content": "a"}]
CHAT: dict[str, Any] = {"model": "m", "messages": MESSAGES, "seed": 1}
ANTHROPIC: dict[str, Any] = {**CHAT, "max_tokens": 5}
RESPONSES: dict[str, Any] = {"model": "m", "input": "a", "seed": 1}
COMPLETIONS: dict[str, Any] = {"model": "m", "prompt": "a", "seed": 1}
Read = Callable[[object], Any]
LESS: list[tuple[Read, dict[str, Any], dict[str, Any], str]] = [
    (read_chat_body, CHAT, {"reasoning_effort": "none"}, "reasoning_effort"),
    (read_chat_body, CHAT, {"reasoning": {"effort": "none"}}, "reasoning"),
    (read_chat_body, CHAT, {"reasoning": {"enabled": False}}, "reasoning"),
    (read_chat_body, CHAT, {"include_reasoning": False}, "include_reasoning"),
    (read_chat_body, CHAT, {"enable_thinking": False}, "enable_thinking"),
    (read_chat_body, CHAT, {"thinking": {"type": "disabled"}}, "thinking"),
    (read_chat_body, CHAT, {"think": False}, "think"),
    (read_chat_body, CHAT, {"thinking_budget": 0}, "thinking_budget"),
    (read_chat_body, CHAT, {"thinking_token_budget": 64}, "thinking_token_budget"),
    (read_chat_body, CHAT, {"chat_template_kwargs": {"enable_thinking": False}},
     "chat_template_kwargs.enable_thinking"),
    (read_responses_body, RESPONSES, {"reasoning": {"effort": "none"}}, "reasoning.effort"),
    (read_messages_body, ANTHROPIC, {"thinking": {"type": "disabled"}}, "thinking"),
    (read_completions_body, COMPLETIONS, {"thinking_token_budget": 64}, "thinking_token_budget"),
]  # fmt: skip
AS_ALWAYS: list[tuple[Read, dict[str, Any], dict[str, Any]]] = [
    (read_chat_body, CHAT, {"reasoning": {}}),
    (read_chat_body, CHAT, {"include_reasoning": True}),
    (read_chat_body, CHAT, {"reasoning_effort": None, "think": None}),
    (read_chat_body, CHAT, {"separate_reasoning": True, "reasoning_format": "none"}),
    (read_responses_body, RESPONSES, {"reasoning": {"summary": "auto"}}),
]


@pytest.mark.parametrize(
    ("read", "base", "fields", "param"), LESS, ids=[f"{x[3]}-{i}" for i, x in enumerate(LESS)]
)
def test_less_reasoning_is_refused_by_a_model_that_always_reasons(
    read: Read, base: dict[str, Any], fields: dict[str, Any], param: str
) -> None:
    asked = read(base | fields)
    with pytest.raises(InvalidRequest, match="always begin with its reasoning") as refused:
        requests_of(asked, REASONER)
    assert refused.value.param == param
    assert requests_of(asked, CODEC) == requests_of(read(base), CODEC)


@pytest.mark.parametrize(("read", "base", "fields"), AS_ALWAYS, ids=range(len(AS_ALWAYS)))
def test_fields_about_reasoning_that_ask_for_what_is_done_are_taken(
    read: Read, base: dict[str, Any], fields: dict[str, Any]
) -> None:
    for codec in (CODEC, REASONER):
        assert requests_of(read(base | fields), codec) == requests_of(read(base), codec)


def test_counting_tokens_refuses_what_the_message_would() -> None:
    body = read_count_body({"model": "m", "messages": MESSAGES, "thinking": {"type": "disabled"}})
    assert body.chat is not None
    with pytest.raises(InvalidRequest, match="always begin") as refused:
        REASONER.decode_chat(body.chat)
    assert refused.value.param == "thinking"


def test_every_limit_of_reasoning_is_a_field_of_a_chat_and_tested() -> None:
    assert set(LIMITS_OF_REASONING) <= set(FIELDS)
    assert set(LIMITS_OF_REASONING) <= {name for *_, fields, _ in LESS for name in fields}
