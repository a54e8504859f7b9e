"""Tools and the form of an answer in the words of `POST /v1/responses`, read by a chat's rules.

Worker processes import this module, so nothing here loads gRPC.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.answer_format import AnswerFormat
from predictors.protocol.openai import chat_body
from predictors.protocol.openai.fields import (
    DescribedRule,
    described,
    list_of,
    object_schema,
    one_of,
    only_values,
    read_fields,
    require,
    wrong,
)
from predictors.protocol.openai.tool_fields import (
    FUNCTION_FIELDS,
    MAX_TOOLS,
    FunctionTool,
    ToolChoice,
    checked_tools,
    function_type,
    tool_name,
)

_TOOL: dict[str, DescribedRule] = {"type": function_type, **FUNCTION_FIELDS}


@described(object_schema(_TOOL, "type", "name"))
def _tool(name: str, value: Any) -> FunctionTool:
    if isinstance(value, dict) and value.get("type") is not None:
        function_type.check(f"{name}.type", value["type"])  # the other fields belong to the type
    read = read_fields(value, _TOOL, where=name)
    require(read, "type", "name", where=name)
    return FunctionTool(**{key: each for key, each in read.items() if key != "type"})


_TOOLS = list_of(_tool, at_most=MAX_TOOLS, noun="tools")


@described(_TOOLS.schema)
def flat_tools(name: str, value: Any) -> tuple[FunctionTool, ...]:
    return checked_tools(name, _TOOLS.check(name, value))


_NAMED: dict[str, DescribedRule] = {"type": function_type, "name": tool_name}


@described(object_schema(_NAMED, "type", "name"))
def _named(name: str, value: Any) -> str:
    read = read_fields(value, _NAMED, where=name)
    require(read, "type", "name", where=name)
    found: str = read["name"]
    return found


_ALLOWED: dict[str, DescribedRule] = {
    "type": only_values("allowed_tools"),
    "mode": one_of("auto", "required"),
    "tools": list_of(_named, at_most=MAX_TOOLS, noun="tools"),
}
_MODE = one_of("auto", "none", "required")


@described(
    {"anyOf": [_MODE.schema, object_schema(_NAMED, "type", "name"), object_schema(_ALLOWED)]}
)
def flat_tool_choice(name: str, value: Any) -> ToolChoice:
    if not isinstance(value, dict):
        return ToolChoice(_MODE.check(name, value))
    if value.get("type") != "allowed_tools":
        return ToolChoice("required", (_named.check(name, value),), only_one=True)
    read = read_fields(value, _ALLOWED, where=name)
    require(read, "mode", "tools", where=name)
    if not read["tools"]:
        raise InvalidRequest(f"{name}.tools is empty; name a tool", param=f"{name}.tools")
    return ToolChoice(read["mode"], tuple(read["tools"]))


# -- the form of an answer -------------------------------------------------------------------------
_CHAT_FORMAT = chat_body.OWN_FIELDS["response_format"]
_FORMAT_FIELDS = ("name", "schema", "strict", "description")
_FORMAT_SCHEMA = {
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": {"enum": ["text", "json_object", "json_schema"]},
        "name": {"type": ["string", "null"]},
        "schema": {"type": ["object", "null"]},
        "strict": {"type": ["boolean", "null"]},
        "description": {"type": ["string", "null"]},
    },
    "additionalProperties": False,
}


@described(_FORMAT_SCHEMA)
def flat_format(name: str, value: Any) -> object:
    """As a chat's `response_format`, whose `json_schema` has the fields that stand beside the type
    here."""
    if not isinstance(value, dict):
        raise wrong(name, "an object with a type", value)
    nested = {key: each for key, each in value.items() if key not in _FORMAT_FIELDS}
    inner = {key: each for key, each in value.items() if key in _FORMAT_FIELDS}
    if inner:
        nested["json_schema"] = inner
    try:
        found = _CHAT_FORMAT.check(name, nested)
    except InvalidRequest as error:
        there = f"{name}.json_schema"
        param = (error.param or name).replace(there, name)
        raise InvalidRequest(error.message.replace(there, name), param=param) from error
    if isinstance(found, AnswerFormat):
        return replace(found, where=found.where.replace(".json_schema", ""))
    return found
