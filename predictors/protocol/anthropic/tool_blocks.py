"""Tools in the words of `POST /v1/messages`: definitions, the choice among them, calls and results.

Names, schemas and calls are checked by a chat's rules. Worker processes import this module, so
nothing here loads gRPC.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.openai.clients import NO_TOOLS, PART_FIELDS, SENT_BACK
from predictors.protocol.openai.fields import (
    DescribedRule,
    described,
    dropped,
    flag,
    one_of,
    only_values,
    said,
    wrong,
)
from predictors.protocol.openai.objects import object_of
from predictors.protocol.openai.tool_calls import MAX_ARGUMENTS, ToolCall, call_id_rule
from predictors.protocol.openai.tool_fields import (
    AUTO,
    FUNCTION_FIELDS,
    NONE,
    REQUIRED,
    FunctionTool,
    ToolChoice,
    list_of_tools,
    only_type,
    parameters_rule,
    tool_name,
)

CACHE_MARK = PART_FIELDS["cache_control"]

TOOL: dict[str, DescribedRule] = {
    "type": only_type("custom"),
    "name": FUNCTION_FIELDS["name"],
    "description": FUNCTION_FIELDS["description"],
    "input_schema": parameters_rule,
    "strict": said("`input` is valid against `input_schema` in every case.", flag, default=False),
    "cache_control": CACHE_MARK,
    "input_examples": only_values([], why="write them into the description"),
    "eager_input_streaming": dropped(bool, why="inputs are sent as they grow"),
    "defer_loading": only_values(False, why="there is no search for tools"),
    "allowed_callers": only_values(["direct"], why=NO_TOOLS),
}


@object_of(TOOL, "name", "input_schema", first="type")
def _tool(name: str, read: dict[str, Any]) -> FunctionTool:
    shared = (read["name"], read.get("description"), read["input_schema"])
    return FunctionTool(*shared, read.get("strict", False), f"{name}.input_schema")


anthropic_tools = list_of_tools(_tool)


# -- choice ----------------------------------------------------------------------------------------
_MODES = {"auto": AUTO, "any": REQUIRED, "tool": REQUIRED, "none": NONE}
_CHOICE: dict[str, DescribedRule] = {
    "type": one_of(*_MODES),
    "name": tool_name,
    "disable_parallel_tool_use": said("An answer has one call at most.", flag, default=False),
}


@dataclass(frozen=True)
class AnthropicChoice:
    """A choice among tools. `parallel`: an answer may have several calls."""

    choice: ToolChoice
    parallel: bool


@object_of(_CHOICE, "type")
def anthropic_choice(name: str, read: dict[str, Any]) -> AnthropicChoice:
    kind, called = read["type"], read.get("name")
    if (kind == "tool") != (called is not None):
        problem = "is for the type 'tool'" if called else "is required"
        raise InvalidRequest(f"{name}.name {problem}", param=f"{name}.name")
    names = () if called is None else (called,)
    parallel = not read.get("disable_parallel_tool_use", False)
    return AnthropicChoice(ToolChoice(_MODES[kind], names, only_one=bool(names)), parallel)


# -- calls -----------------------------------------------------------------------------------------
@described({"type": "object"})
def _input(name: str, value: Any) -> str:
    """The arguments as a JSON text."""
    if not isinstance(value, dict):
        raise wrong(name, "an object", value)
    text = json.dumps(value, ensure_ascii=False)
    if len(text) > MAX_ARGUMENTS:
        message = f"{name} has {len(text)} characters as JSON; at most {MAX_ARGUMENTS} are taken"
        raise InvalidRequest(message, param=name)
    return text


TOOL_USE: dict[str, DescribedRule] = {
    "type": one_of("tool_use"),
    "id": call_id_rule,
    "name": tool_name,
    "input": _input,
    "cache_control": CACHE_MARK,
    "caller": dropped(dict, why=SENT_BACK),
    "partial_json": only_values(why="the call was cut off; leave its block out"),
}


@object_of(TOOL_USE, "type", "id", "name", "input")
def tool_use_rule(name: str, read: dict[str, Any]) -> ToolCall:
    return ToolCall(read["id"], read["name"], read["input"], where=f"{name}.id")
