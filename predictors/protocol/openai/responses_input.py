"""The input of `POST /v1/responses` as messages of a chat: a text, or items of a conversation.

Messages and their parts are checked by the rules of a chat's. Worker processes import this module,
so nothing here loads gRPC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.openai.fields import (
    DescribedRule,
    described,
    dropped,
    object_schema,
    one_of,
    only_values,
    read_fields,
    require,
    text,
    wrong,
)
from predictors.protocol.openai.messages import (
    MAX_MESSAGES,
    MESSAGE_FIELDS,
    BodyMessage,
    message_rule,
    text_rule,
)
from predictors.protocol.openai.tool_calls import OpenCalls, call_id_rule, calls_rule
from predictors.protocol.openai.tool_fields import MAX_CHARS, tool_name

MAX_ITEMS = MAX_MESSAGES
REASONING = "reasoning"
"""Items of another model's thoughts, which are left out: no model here reads them."""

_SENT_BACK = "it came with the answer that is sent back"
_PARTS = ("input_text", "input_image", "output_text", "text", "image_url")

Json = Mapping[str, Any]


def _passed(rule: DescribedRule) -> DescribedRule:
    """Takes what `rule` takes, which checks it later."""
    return DescribedRule(lambda name, value: value, rule.schema)


MESSAGE_ITEM: dict[str, DescribedRule] = {
    "type": only_values("message", why="it is the type of a message"),
    "role": one_of("user", "assistant", "system", "developer"),
    "content": _passed(MESSAGE_FIELDS["content"]),
    "id": dropped(str, why=_SENT_BACK),
    "status": dropped(str, why=_SENT_BACK),
    "phase": dropped(str, why=_SENT_BACK),
}


def _message(name: str, item: Json) -> BodyMessage:
    read = read_fields(item, MESSAGE_ITEM, where=name)
    require(read, "role", "content", where=name)
    found: BodyMessage = message_rule.check(name, read)
    return found


CALL_ITEM: dict[str, DescribedRule] = {
    "type": only_values("function_call", why="it is the type of a call"),
    "call_id": call_id_rule,
    "name": tool_name,
    "arguments": text(at_most=MAX_CHARS),
    "id": dropped(str, why=_SENT_BACK),
    "status": dropped(str, why=_SENT_BACK),
    "namespace": only_values("", why="functions have no namespaces here"),
}


def _call(name: str, item: Json) -> BodyMessage:
    read = read_fields(item, CALL_ITEM, where=name)
    require(read, "call_id", "name", "arguments", where=name)
    function = {"name": read["name"], "arguments": read["arguments"]}
    try:
        calls = calls_rule.check(name, [{"id": read["call_id"], "function": function}])
    except InvalidRequest as error:  # of the arguments: all else is checked
        inner = f"{name}[0].function."
        message = error.message.replace(inner, f"{name}.")
        raise InvalidRequest(message, param=f"{name}.arguments") from error
    return BodyMessage("assistant", (), calls)


OUTPUT_ITEM: dict[str, DescribedRule] = {
    "type": only_values("function_call_output", why="it is the type of a call's answer"),
    "call_id": call_id_rule,
    "output": _passed(MESSAGE_FIELDS["content"]),
    "id": dropped(str, why=_SENT_BACK),
    "status": dropped(str, why=_SENT_BACK),
}


def _output(name: str, item: Json) -> BodyMessage:
    read = read_fields(item, OUTPUT_ITEM, where=name)
    require(read, "call_id", "output", where=name)
    message = {"role": "tool", "tool_call_id": read["call_id"], "content": read["output"]}
    try:
        found: BodyMessage = message_rule.check(name, message)
    except InvalidRequest as error:
        inner, own = f"{name}.content", f"{name}.output"
        param = (error.param or own).replace(inner, own)
        raise InvalidRequest(error.message.replace(inner, own), param=param) from error
    return found


def _no_reference(name: str, item: Json) -> BodyMessage:
    raise _refused(name, item, "answers are not kept; send the item itself")


def _refused(name: str, item: Json, why: str) -> InvalidRequest:
    kind = str(item.get("type"))[:64]
    return InvalidRequest(f"{name}.type {kind!a} is not supported: {why}", param=f"{name}.type")


_READERS: Mapping[str, Callable[[str, Json], BodyMessage]] = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _output,
    "item_reference": _no_reference,
}


def _item(name: str, value: Any) -> BodyMessage | None:
    """None for an item that is left out."""
    if not isinstance(value, dict):
        raise wrong(name, "an object", value)
    kind = value.get("type", "message")
    if kind is not None and not isinstance(kind, str):
        raise wrong(f"{name}.type", "a string", kind)
    if kind == REASONING:
        return None
    read = _READERS.get(kind or "message")
    if read is None and kind in _PARTS:
        raise _refused(name, value, "it is a part of a message's content, not an item")
    if read is None:
        raise _refused(name, value, "there are no built-in tools and no kept items")
    return read(name, value)


_ITEM_SCHEMA = {
    "anyOf": [
        object_schema(MESSAGE_ITEM, "role", "content"),
        object_schema(CALL_ITEM, "type", "call_id", "name", "arguments"),
        object_schema(OUTPUT_ITEM, "type", "call_id", "output"),
        {
            "type": "object",
            "properties": {"type": {"const": REASONING}},
            "required": ["type"],
            "description": "Ignored: no model here reads it.",
        },
    ]
}


@described(
    {
        "anyOf": [
            text_rule.schema,
            {"type": "array", "minItems": 1, "maxItems": MAX_ITEMS, "items": _ITEM_SCHEMA},
        ]
    }
)
def input_rule(name: str, value: Any) -> tuple[BodyMessage, ...]:
    if isinstance(value, str):
        return (BodyMessage("user", (text_rule.check(name, value),)),)
    if not isinstance(value, list):
        raise wrong(name, "a string or a list of items", value)
    if len(value) > MAX_ITEMS:
        message = f"{name} has {len(value)} items; at most {MAX_ITEMS} are taken"
        raise InvalidRequest(message, param=name)
    messages: list[BodyMessage] = []
    places: list[int] = []  # of the items that began them
    for i, item in enumerate(value):
        found = _item(f"{name}[{i}]", item)
        if found is None:
            continue
        if messages and _is_one_turn(messages[-1], found):
            before = messages[-1]
            both = (before.parts + found.parts, before.calls + found.calls)
            messages[-1] = BodyMessage("assistant", *both)
        else:
            messages.append(found)
            places.append(i)
    if not messages:
        raise InvalidRequest(f"{name} is empty; at least one message is needed", param=name)
    _check_calls(name, messages, places)
    return tuple(messages)


def _is_one_turn(before: BodyMessage, message: BodyMessage) -> bool:
    """An assistant's text and its calls are one message of a chat."""
    are_both = before.role == message.role == "assistant"
    return are_both and bool(before.calls or message.calls)


def _check_calls(name: str, messages: Sequence[BodyMessage], places: Sequence[int]) -> None:
    """Raise `InvalidRequest` for a call without its answer, and the reverse."""
    unanswered = OpenCalls(name)
    try:
        for i, message in zip(places, messages, strict=True):
            unanswered.see(i, message.calls, message.call_id)
        unanswered.close("the end")
    except InvalidRequest as error:
        words = f"{error.message} (here they are function_call and function_call_output items)"
        raise InvalidRequest(words, param=(error.param or name).rpartition(".")[0]) from error
