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
    object_schema,
    only_values,
    wrong,
)
from predictors.protocol.openai.objects import field_value, object_of
from predictors.protocol.openai.tool_fields import (
    FUNCTION_FIELDS,
    MODE,
    REQUIRED,
    FunctionTool,
    ToolChoice,
    allowed_choice,
    allowed_fields,
    function_type,
    list_of_tools,
    tool_name,
)

_TOOL: dict[str, DescribedRule] = {"type": function_type, **FUNCTION_FIELDS}


@object_of(_TOOL, "type", "name", first="type")
def _tool(name: str, read: dict[str, Any]) -> FunctionTool:
    own = {key: each for key, each in read.items() if key != "type"}
    return FunctionTool(**own, where=f"{name}.parameters")


flat_tools = list_of_tools(_tool)
_NAMED = {"type": function_type, "name": tool_name}
_named = object_of(_NAMED, "type", "name")(field_value("name"))
_ALLOWED = {"type": only_values("allowed_tools"), **allowed_fields(_named)}
_allowed = object_of(_ALLOWED, "mode", "tools")(allowed_choice)


@described({"anyOf": [MODE.schema, _named.schema, object_schema(_ALLOWED)]})
def flat_tool_choice(name: str, value: Any) -> ToolChoice:
    if not isinstance(value, dict):
        return ToolChoice(MODE.check(name, value))
    if value.get("type") != "allowed_tools":
        return ToolChoice(REQUIRED, (_named.check(name, value),), only_one=True)
    choice: ToolChoice = _allowed.check(name, value)
    return choice


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
