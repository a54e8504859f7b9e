"""An assistant's texts and calls in the order in which they were sent, on the three text routes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from predictors.errors import InvalidRequest
from predictors.protocol.anthropic.messages_body import read_messages_body
from predictors.protocol.openai.chat_body import read_chat_body
from predictors.protocol.openai.conversation import BodyMessage
from predictors.protocol.openai.responses_body import read_responses_body
from predictors.protocol.openai.tool_calls import ToolCall

ASKED = {"role": "user", "content": "how many?"}

# -- a turn in the words of each route: a lower-case letter is a text, a digit a call, `|` the end
# -- of a message
ORDERS: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "1": ((), ()),
    "a1": (("a",), ()),
    "ab1": (("a", "b"), ()),
    "a12": (("a",), ()),
    "1a": (("a",), (0,)),
    "12a": (("a",), (0, 0)),
    "1a2": (("a",), (0, 1)),
    "a1b": (("a", "b"), (1,)),
    "a1b2": (("a", "b"), (1, 2)),
    "a1b2c": (("a", "b", "c"), (1, 2)),
    "a|1": (("a",), ()),
    "a1|2": (("a",), ()),
    "1|a": (("a",), (0,)),
    "a1|b": (("a", "b"), (1,)),
    "a|1b|c2": (("a", "b", "c"), (1, 3)),
}
"""The parts of the message that is read, and the number of them before each call, empty where all
stand before."""
TEXT_FIRST = [order for order, (_, at) in ORDERS.items() if not at and "|" not in order]
BEHIND = [order for order, (_, at) in ORDERS.items() if at]


def calls_of(order: str) -> list[str]:
    return [each for each in order if each.isdigit()]


def anthropic_turn(order: str) -> list[Any]:
    def block(each: str) -> dict[str, Any]:
        if each.isdigit():
            return {"type": "tool_use", "id": each, "name": "count", "input": {}}
        return {"type": "text", "text": each}

    return [
        {"role": "assistant", "content": list(map(block, message))} for message in order.split("|")
    ]


def read_anthropic(order: str, *, answered: bool = True) -> tuple[BodyMessage, ...]:
    results = [{"type": "tool_result", "tool_use_id": each} for each in calls_of(order)]
    last = {"role": "user", "content": results if answered else "well?"}
    messages = [ASKED, *anthropic_turn(order), last]
    body = {"model": "m", "max_tokens": 9, "messages": messages}
    return read_messages_body(body).chat.messages


def read_responses(order: str, *, answered: bool = True) -> tuple[BodyMessage, ...]:
    items: list[Any] = [ASKED]
    for each in re.findall("[0-9]|[a-z]+", order.replace("|", "")):
        if each.isdigit():
            call = {"type": "function_call", "call_id": each, "name": "count", "arguments": "{}"}
            items.append(call)
        else:
            parts = [{"type": "output_text", "text": letter} for letter in each]
            items.append({"type": "message", "role": "assistant", "content": parts})
    output = {"type": "function_call_output", "output": ""}
    results: list[Any] = [{**output, "call_id": each} for each in calls_of(order)]
    items += results if answered else [{"role": "user", "content": "well?"}]
    return read_responses_body({"model": "m", "input": items}).chat.messages


def read_chat(order: str, *, answered: bool = True) -> tuple[BodyMessage, ...]:
    """Each run of texts and the calls behind it are one message: `content` stands before
    `tool_calls`."""
    turn: list[dict[str, Any]] = []
    for each in order.replace("|", ""):
        if each.isdigit():
            if not turn:
                turn.append({"role": "assistant", "content": None})
            call = {"id": each, "function": {"name": "count", "arguments": "{}"}}
            turn[-1].setdefault("tool_calls", []).append(call)
        else:
            if not turn or "tool_calls" in turn[-1]:
                turn.append({"role": "assistant", "content": []})
            turn[-1]["content"].append({"type": "text", "text": each})
    results = [{"role": "tool", "tool_call_id": each, "content": ""} for each in calls_of(order)]
    last = results if answered else [{"role": "user", "content": "well?"}]
    return read_chat_body({"model": "m", "messages": [ASKED, *turn, *last]}).messages


IN_ORDER = {"anthropic": read_anthropic, "responses": read_responses}
ROUTES = {**IN_ORDER, "chat": read_chat}


def expected(order: str) -> list[BodyMessage]:
    parts, at = ORDERS[order]
    calls = tuple(ToolCall(each, "count", "{}") for each in calls_of(order))
    answers = [BodyMessage("tool", ("",), (), call.id) for call in calls]
    return [BodyMessage("assistant", parts, calls, calls_at=at), *answers]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("route", IN_ORDER)
def test_texts_and_calls_keep_their_order(route: str, order: str) -> None:
    assert list(ROUTES[route](order)[1:]) == expected(order)


@pytest.mark.parametrize("order", TEXT_FIRST)
def test_a_chats_message_has_its_text_before_its_calls(order: str) -> None:
    assert list(read_chat(order)[1:]) == expected(order)


@pytest.mark.parametrize("order", BEHIND)
def test_a_chat_has_no_place_for_text_behind_a_call_and_says_so(order: str) -> None:
    with pytest.raises(InvalidRequest, match="has no answer before") as refusal:
        read_chat(order)
    assert "send a message of role tool with its tool_call_id" in refusal.value.message


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("route", ROUTES)
def test_a_call_without_its_answer_is_refused_in_any_order(route: str, order: str) -> None:
    with pytest.raises(InvalidRequest, match="has no answer before"):
        ROUTES[route](order, answered=False)
