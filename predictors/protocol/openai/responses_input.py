"""The input of `POST /v1/responses` as messages of a chat: a text, or items of a conversation.

Messages and their parts are checked by the rules of a chat's. Worker processes import this module,
so nothing here loads gRPC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.openai.clients import NO_TOOLS
from predictors.protocol.openai.fields import (
    DescribedRule,
    described,
    dropped,
    object_schema,
    one_of,
    only_values,
    read_fields,
    require,
    wrong,
)
from predictors.protocol.openai.messages import (
    MAX_MESSAGES,
    MESSAGE_FIELDS,
    BodyMessage,
    message_rule,
    text_rule,
)

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


def _no_tool(name: str, item: Json) -> BodyMessage:
    raise _refused(name, item, NO_TOOLS)


def _no_reference(name: str, item: Json) -> BodyMessage:
    raise _refused(name, item, "answers are not kept; send the item itself")


def _refused(name: str, item: Json, why: str) -> InvalidRequest:
    kind = str(item.get("type"))[:64]
    return InvalidRequest(f"{name}.type {kind!a} is not supported: {why}", param=f"{name}.type")


_READERS: Mapping[str, Callable[[str, Json], BodyMessage]] = {
    "message": _message,
    "function_call": _no_tool,
    "function_call_output": _no_tool,
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
    read = [_item(f"{name}[{i}]", item) for i, item in enumerate(value)]
    messages = tuple(each for each in read if each is not None)
    if not messages:
        raise InvalidRequest(f"{name} is empty; at least one message is needed", param=name)
    return messages
