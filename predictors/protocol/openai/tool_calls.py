"""Calls of tools in the messages of OpenAI bodies: an assistant's `tool_calls`, and the messages of
role tool that answer them.

Worker processes import this module, so nothing here loads gRPC.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.http.bodies import parse_json
from predictors.protocol.openai.clients import PART_FIELDS
from predictors.protocol.openai.fields import (
    DescribedRule,
    described,
    dropped,
    list_of,
    object_schema,
    read_fields,
    require,
    wrong,
)
from predictors.protocol.openai.tool_fields import function_type, tool_name

MAX_CALLS = 128  # of one message
MAX_ARGUMENTS = 2**18  # characters of one call
MAX_ID = 256  # characters
NO_OLDER_CALLS = "it is the older form of tool_calls; send tool_calls and messages of role tool"


@dataclass(frozen=True)
class ToolCall:
    """A call in a conversation. `arguments` is the JSON text of an object."""

    id: str
    name: str
    arguments: str


@described({"type": "string", "description": "The JSON text of an object, or nothing."})
def arguments_rule(name: str, value: Any) -> str:
    """The JSON text of the object, as it was sent; `{}` for an empty text."""
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
    return value


_CALLED: dict[str, DescribedRule] = {
    "name": tool_name,
    "arguments": arguments_rule,
    # OpenAI's client sends a parsed call back with it
    "parsed_arguments": dropped(dict, list, str, float, bool, why="it repeats arguments"),
}


@described(object_schema(_CALLED, "name", "arguments"))
def _called(name: str, value: Any) -> tuple[str, str]:
    read = read_fields(value, _CALLED, where=name)
    require(read, "name", "arguments", where=name)
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


@described(object_schema(_CALL, "id", "function"))
def _call(name: str, value: Any) -> ToolCall:
    read = read_fields(value, _CALL, where=name)
    require(read, "id", "function", where=name)
    return ToolCall(read["id"], *read["function"])


_CALLS = list_of(_call, at_most=MAX_CALLS, noun="calls")


@described(_CALLS.schema)
def calls_rule(name: str, value: Any) -> tuple[ToolCall, ...]:
    calls = tuple(_CALLS.check(name, value))
    ids = [call.id for call in calls]
    for i, each in enumerate(ids):
        if each in ids[:i]:
            message = f"{name}[{i}].id: another call has the id {each[:40]!a} as well"
            raise InvalidRequest(message, param=f"{name}[{i}].id")
    return calls


class OpenCalls:
    """The calls of a conversation that have no answer yet. As for OpenAI, the messages right behind
    an assistant's calls answer them, all of them, each once."""

    def __init__(self, name: str) -> None:
        """`name` is the field of the messages."""
        self._name = name
        self._open: dict[str, str] = {}  # id -> field of its call's message

    def see(self, i: int, calls: Collection[ToolCall], answered: str | None) -> None:
        """Message number `i`, with its calls, or the id of the call that it answers. Raises
        `InvalidRequest`."""
        where = f"{self._name}[{i}]"
        if answered is None:
            self.close(where)
            self._open = {call.id: where for call in calls}
            return
        if self._open.pop(answered, None) is None:
            raise InvalidRequest(
                f"{where}.tool_call_id {answered[:40]!a} answers no open call of the assistant's "
                "message before it; send that message with its tool_calls, and each answer once",
                param=f"{where}.tool_call_id",
            )

    def close(self, where: str) -> None:
        """Raise `InvalidRequest` if a call has no answer before `where`."""
        for each, message in self._open.items():
            raise InvalidRequest(
                f"{message}.tool_calls: the call {each[:40]!a} has no answer before {where}; "
                "send a message of role tool with its tool_call_id",
                param=f"{message}.tool_calls",
            )
