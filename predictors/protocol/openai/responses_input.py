"""The input of `POST /v1/responses` as messages of a chat: a text, or items of a conversation.

Messages and their parts are checked by the rules of a chat's. Worker processes import this module,
so nothing here loads gRPC.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from predictors.protocol.openai.clients import SENT_BACK
from predictors.protocol.openai.conversation import AnswerWords, BodyMessage, joined_turns
from predictors.protocol.openai.fields import (
    DescribedRule,
    described,
    dropped,
    object_schema,
    one_of,
    only_values,
    text,
)
from predictors.protocol.openai.messages import (
    MAX_MESSAGES,
    MESSAGE_FIELDS,
    check_only_texts,
    message_rule,
    text_or_list,
)
from predictors.protocol.openai.objects import (
    checked_later,
    ignored_type,
    object_of,
    type_of,
    unsupported,
)
from predictors.protocol.openai.tool_calls import ToolCall, arguments_rule, call_id_rule
from predictors.protocol.openai.tool_fields import MAX_CHARS, tool_name

MAX_ITEMS = MAX_MESSAGES
REASONING = "reasoning"
"""Items of another model's thoughts, which are left out: no model here reads them."""

_PARTS = ("input_text", "input_image", "output_text", "text", "image_url")

_CONTENT = checked_later(MESSAGE_FIELDS["content"].schema)
"""Content as a chat's rule takes it."""

MESSAGE_ITEM: dict[str, DescribedRule] = {
    "type": only_values("message", why="it is the type of a message"),
    "role": one_of("user", "assistant", "system", "developer"),
    "content": _CONTENT,
    "id": dropped(str, why=SENT_BACK),
    "status": dropped(str, why=SENT_BACK),
    "phase": dropped(str, why=SENT_BACK),
}


@object_of(MESSAGE_ITEM, "role", "content")
def _message(name: str, read: dict[str, Any]) -> BodyMessage:
    found: BodyMessage = message_rule.check(name, read)
    return found


CALL_ITEM: dict[str, DescribedRule] = {
    "type": only_values("function_call", why="it is the type of a call"),
    "call_id": call_id_rule,
    "name": tool_name,
    "arguments": text(at_most=MAX_CHARS),
    "id": dropped(str, why=SENT_BACK),
    "status": dropped(str, why=SENT_BACK),
    "namespace": only_values("", why="functions have no namespaces here"),
}


@object_of(CALL_ITEM, "call_id", "name", "arguments")
def _call(name: str, read: dict[str, Any]) -> BodyMessage:
    arguments = arguments_rule.check(f"{name}.arguments", read["arguments"])
    call = ToolCall(read["call_id"], read["name"], arguments, where=f"{name}.call_id")
    return BodyMessage("assistant", (), (call,), where=name)


OUTPUT_ITEM: dict[str, DescribedRule] = {
    "type": only_values("function_call_output", why="it is the type of a call's answer"),
    "call_id": call_id_rule,
    "output": _CONTENT,
    "id": dropped(str, why=SENT_BACK),
    "status": dropped(str, why=SENT_BACK),
}


@object_of(OUTPUT_ITEM, "call_id", "output")
def _output(name: str, read: dict[str, Any]) -> BodyMessage:
    parts = MESSAGE_FIELDS["content"].check(f"{name}.output", read["output"])
    check_only_texts(f"{name}.output", parts, "tool")
    return BodyMessage("tool", parts, (), read["call_id"], where=name)


_READERS: Mapping[str, DescribedRule] = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _output,
}
_WHY_NOT = {
    "item_reference": "answers are not kept; send the item itself",
    **dict.fromkeys(_PARTS, "it is a part of a message's content, not an item"),
}


def _check_item(name: str, value: Any) -> BodyMessage | None:
    """None for an item that is left out."""
    kind = type_of(name, value, usual="message")
    if kind == REASONING:
        return None
    if kind not in _READERS:
        why = _WHY_NOT.get(kind, "there are no built-in tools and no kept items")
        raise unsupported(f"{name}.type", kind, why)
    found: BodyMessage = _READERS[kind].check(name, value)
    return found


_ITEM_SCHEMA = {
    "anyOf": [
        _message.schema,
        object_schema(CALL_ITEM, "type", "call_id", "name", "arguments"),
        object_schema(OUTPUT_ITEM, "type", "call_id", "output"),
        ignored_type(REASONING),
    ]
}
_TEXT_OR_ITEMS = text_or_list(
    DescribedRule(_check_item, _ITEM_SCHEMA), at_most=MAX_ITEMS, noun="items"
)
_TEXT_SCHEMA, _ITEMS_SCHEMA = _TEXT_OR_ITEMS.schema["anyOf"]


@described({"anyOf": [_TEXT_SCHEMA, {**_ITEMS_SCHEMA, "minItems": 1}]})
def input_rule(name: str, value: Any) -> tuple[BodyMessage, ...]:
    found = _TEXT_OR_ITEMS.check(name, value)
    if isinstance(value, str):
        return (BodyMessage("user", tuple(found)),)
    return joined_turns(
        name,
        (item for item in found if item is not None),
        joins_texts=False,
        words=AnswerWords("a function_call_output item", "call_id"),
    )
