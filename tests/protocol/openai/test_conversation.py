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


# -- calls and their answers: a call is a digit, its answer stands behind a colon ------------------
def anthropic_pairs(calls: str, answers: str) -> dict[str, Any]:
    results = [{"type": "tool_result", "tool_use_id": each} for each in answers]
    messages = [ASKED, *(anthropic_turn(calls) if calls else [])]
    messages += [{"role": "user", "content": results or "well?"}]
    return {"model": "m", "max_tokens": 9, "messages": messages}


def responses_pairs(calls: str, answers: str) -> dict[str, Any]:
    called = {"type": "function_call", "name": "count", "arguments": "{}"}
    output = {"type": "function_call_output", "output": ""}
    items: list[Any] = [ASKED, *({**called, "call_id": each} for each in calls)]
    items += [{**output, "call_id": each} for each in answers]
    return {"model": "m", "input": [*items, {"role": "user", "content": "well?"}]}


def chat_pairs(calls: str, answers: str) -> dict[str, Any]:
    made = [{"id": each, "function": {"name": "count", "arguments": "{}"}} for each in calls]
    messages: list[Any] = [ASKED, *([{"role": "assistant", "tool_calls": made}] if calls else [])]
    messages += [{"role": "tool", "tool_call_id": each, "content": ""} for each in answers]
    return {"model": "m", "messages": [*messages, {"role": "user", "content": "well?"}]}


PAIRS = {
    "chat": (chat_pairs, read_chat_body),
    "responses": (responses_pairs, read_responses_body),
    "anthropic": (anthropic_pairs, read_messages_body),
}
MISPAIRED: dict[str, tuple[str, dict[str, str]]] = {
    "11:1": ("is the id of", {
        "chat": "messages[1].tool_calls[1].id", "responses": "input[2].call_id",
        "anthropic": "messages[1].content[1].id"}),
    "11:11": ("is the id of", {
        "chat": "messages[1].tool_calls[1].id", "responses": "input[2].call_id",
        "anthropic": "messages[1].content[1].id"}),
    "121:12": ("is the id of", {
        "chat": "messages[1].tool_calls[2].id", "responses": "input[3].call_id",
        "anthropic": "messages[1].content[2].id"}),
    ":1": ("is of no call", {
        "chat": "messages[1].tool_call_id", "responses": "input[1].call_id",
        "anthropic": "messages[1].content[0].tool_use_id"}),
    "1:12": ("is of no call", {
        "chat": "messages[3].tool_call_id", "responses": "input[3].call_id",
        "anthropic": "messages[2].content[1].tool_use_id"}),
    "1:11": ("is answered by", {
        "chat": "messages[3].tool_call_id", "responses": "input[3].call_id",
        "anthropic": "messages[2].content[1].tool_use_id"}),
    "12:2": ("has no answer before", {
        "chat": "messages[1].tool_calls[0].id", "responses": "input[1].call_id",
        "anthropic": "messages[1].content[0].id"}),
    "1:": ("has no answer before", {
        "chat": "messages[1].tool_calls[0].id", "responses": "input[1].call_id",
        "anthropic": "messages[1].content[0].id"}),
}  # fmt: skip
"""By mistake: the field at fault on each route."""


@pytest.mark.parametrize("pairs", MISPAIRED)
@pytest.mark.parametrize("route", PAIRS)
def test_calls_and_answers_that_do_not_pair_are_refused_by_the_callers_own_field(
    route: str, pairs: str
) -> None:
    (make, read), (words, fields) = PAIRS[route], MISPAIRED[pairs]
    with pytest.raises(InvalidRequest, match=words) as refusal:
        read(make(*pairs.split(":")))
    assert refusal.value.param == fields[route]
    assert refusal.value.message.startswith(fields[route])


@pytest.mark.parametrize("pairs", ["1:1", "12:12", "12:21"])
@pytest.mark.parametrize("route", PAIRS)
def test_calls_that_are_answered_once_each_are_read_in_any_order(route: str, pairs: str) -> None:
    make, read = PAIRS[route]
    read(make(*pairs.split(":")))


def test_calls_of_turns_side_by_side_are_of_one_turn() -> None:
    """Anthropic's clients may send a turn in several messages."""
    made = anthropic_pairs("1", "1")
    made["messages"].insert(1, made["messages"][1])
    with pytest.raises(InvalidRequest) as refusal:
        read_messages_body(made)
    assert refusal.value.param == "messages[2].content[0].id"


@pytest.mark.parametrize("route", PAIRS)
def test_an_id_may_come_again_in_a_later_turn(route: str) -> None:
    """Some models count their calls from 0 in every answer."""
    make, read = PAIRS[route]
    made = make("1", "1")
    field = "input" if route == "responses" else "messages"
    made[field] += made[field][1:]
    read(made)
