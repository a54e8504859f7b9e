"""Calls of tools in the messages of OpenAI bodies: an assistant's `tool_calls`, with their ids and
arguments.

Worker processes import this module, so nothing here loads gRPC.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.http.bodies import parse_json
from predictors.protocol.openai.clients import PART_FIELDS
from predictors.protocol.openai.fields import (
    DescribedRule,
    described,
    dropped,
    list_of,
    wrong,
)
from predictors.protocol.openai.objects import object_of
from predictors.protocol.openai.tool_fields import function_type, tool_name

MAX_CALLS = 128  # of one message
MAX_ARGUMENTS = 2**18  # characters of one call
MAX_ID = 256  # characters
BYTE_ORDER_MARK = "\ufeff"
NO_OLDER_CALLS = "it is the older form of tool_calls; send tool_calls and messages of role tool"


@dataclass(frozen=True)
class ToolCall:
    """A call in a conversation. `arguments` is the JSON text of an object."""

    id: str
    name: str
    arguments: str
    where: str = field(default="", compare=False)
    """The field that held `id`, such as `messages[1].tool_calls[0].id`."""


@described({"type": "string", "description": "The JSON text of an object, or nothing."})
def arguments_rule(name: str, value: Any) -> str:
    """The JSON text of the object, as it was sent but for a byte order mark; `{}` for an empty
    text."""
    if not isinstance(value, str):
        raise wrong(name, "a string, the JSON text of an object", value)
    if len(value) > MAX_ARGUMENTS:
        message = f"{name} has {len(value)} characters; at most {MAX_ARGUMENTS} are taken"
        raise InvalidRequest(message, param=name)
    if not value.strip():
        return "{}"
    try:
        found = parse_json(value.encode())
    except (InvalidRequest, UnicodeEncodeError) as error:
        raise InvalidRequest(f"{name} is not the JSON text of an object", param=name) from error
    if not isinstance(found, dict):
        raise InvalidRequest(f"{name} is JSON, but not an object", param=name)
    return value.removeprefix(BYTE_ORDER_MARK)  # `parse_json` skips it, other readers do not


_CALLED: dict[str, DescribedRule] = {
    "name": tool_name,
    "arguments": arguments_rule,
    # OpenAI's client sends a parsed call back with it
    "parsed_arguments": dropped(dict, list, str, float, bool, why="it repeats arguments"),
}


@object_of(_CALLED, "name", "arguments")
def _called(name: str, read: dict[str, Any]) -> tuple[str, str]:
    return read["name"], read["arguments"]


@described({"type": "string", "minLength": 1, "maxLength": MAX_ID})
def call_id_rule(name: str, value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID:
        raise wrong(name, f"a string of 1 to {MAX_ID} characters", value)
    return value


_CALL: dict[str, DescribedRule] = {
    "id": call_id_rule,
    "type": function_type,
    "function": _called,
    "index": dropped(float, why="a streamed call's place"),
    "cache_control": PART_FIELDS["cache_control"],
}


@object_of(_CALL, "id", "function")
def _call(name: str, read: dict[str, Any]) -> ToolCall:
    called, arguments = read["function"]
    return ToolCall(read["id"], called, arguments, f"{name}.id")


_CALLS = list_of(_call, at_most=MAX_CALLS, noun="calls")


@described(_CALLS.schema)
def calls_rule(name: str, value: Any) -> tuple[ToolCall, ...]:
    return tuple(_CALLS.check(name, value))
