"""The tools of OpenAI bodies: `tools`, `tool_choice` and `parallel_tool_calls`, checked field by
field.

Worker processes import this module, so nothing here loads gRPC.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.openai.clients import NO_TOOLS, PART_FIELDS
from predictors.protocol.openai.fields import (
    DescribedRule,
    described,
    flag,
    list_of,
    one_of,
    only_values,
    require,
    said,
    text,
    wrong,
)
from predictors.protocol.openai.objects import field_value, object_of

MAX_TOOLS = 128  # as OpenAI
MAX_CHARS = 2**18
"""Most characters of all tool definitions of a request together."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # OpenAI's

AUTO, NONE, REQUIRED = "auto", "none", "required"
OLDER_FUNCTIONS = (
    'it is the older form of tools; send tools: [{"type": "function", "function": {...}}]'
)
OLDER_CALL = "it is the older form of tool_choice; send tool_choice"


# Without slots: pickle restores an object that has slots through a Python function.
@dataclass(frozen=True)
class FunctionTool:
    """A function that the caller runs. `parameters` is a JSON Schema of its arguments as a JSON
    text; None where it takes none."""

    name: str
    description: str | None = None
    parameters: str | None = None
    strict: bool = False
    """Arguments are valid against `parameters` in every case."""
    where: str = field(default="tools", compare=False)
    """The field that held `parameters`, such as `tools[0].function.parameters`."""


@dataclass(frozen=True)
class OfferedTools:
    """The tools that a model is told of, and which of them it may or must call."""

    tools: tuple[FunctionTool, ...]
    required: bool = False
    """The answer is a call."""
    callable: tuple[str, ...] = ()
    """The names that may be called; empty for all."""
    parallel: bool = True
    """False: one call at most."""

    @property
    def num_chars(self) -> int:
        """Characters of all descriptions and schemas."""
        return sum(len(tool.description or "") + len(tool.parameters or "") for tool in self.tools)

    @property
    def called(self) -> tuple[FunctionTool, ...]:
        """The tools that may be called."""
        names = self.callable
        return tuple(each for each in self.tools if each.name in names) if names else self.tools


# -- tools -----------------------------------------------------------------------------------------
@described({"type": "string", "pattern": f"^{_NAME.pattern}$"})
def tool_name(name: str, value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise wrong(name, "1 to 64 letters, digits, underscores or dashes", value)
    return value


@described({"type": "object", "description": "A JSON Schema of type object."})
def parameters_rule(name: str, value: Any) -> str:
    """The schema as a JSON text. It is looked at no further: that is for the grammar."""
    if not isinstance(value, dict):
        raise wrong(name, "a JSON Schema of type object", value)
    kind = value.get("type", "object")
    if kind != "object":
        raise wrong(f"{name}.type", "'object', since arguments have names", kind)
    return json.dumps(value, ensure_ascii=False)


FUNCTION_FIELDS: dict[str, DescribedRule] = {
    "name": said("Name of the function.", tool_name),
    "description": said("What the function does, as the model reads it.", text(at_most=MAX_CHARS)),
    "parameters": parameters_rule,
    "strict": said("Arguments are valid against `parameters` in every case.", flag, default=False),
}


@object_of(FUNCTION_FIELDS, "name")
def _function(name: str, read: dict[str, Any]) -> FunctionTool:
    return FunctionTool(**read, where=f"{name}.parameters")


def only_type(kind: str) -> DescribedRule:
    """The type of a caller's own tool."""

    def rule(name: str, value: Any) -> str:
        if value != kind:
            message = f"{name} {str(value)[:40]!a} is not supported: {NO_TOOLS}"
            raise InvalidRequest(f"{message}; it may only be {kind!r}", param=name)
        return kind

    return DescribedRule(rule, {"const": kind})


function_type = only_type("function")
_TOOL: dict[str, DescribedRule] = {
    "type": function_type,
    "function": _function,
    "cache_control": PART_FIELDS["cache_control"],
}


_tool = object_of(_TOOL, "type", "function", first="type")(field_value("function"))


def list_of_tools(tool: DescribedRule) -> DescribedRule:
    """Tools with names of their own, each under the rule `tool`."""
    several = list_of(tool, at_most=MAX_TOOLS, noun="tools")
    return DescribedRule(
        lambda name, value: _checked_tools(name, several.check(name, value)), several.schema
    )


def _checked_tools(name: str, tools: Sequence[FunctionTool]) -> tuple[FunctionTool, ...]:
    """`tools`, checked. Raises `InvalidRequest` for a tool name that is there twice and for too
    much text. `name` is the request's field."""
    seen: set[str] = set()
    for i, tool in enumerate(tools):
        if tool.name in seen:
            path = f"{name}[{i}]"
            message = f"{path}: another tool is called {tool.name!r} as well; rename one"
            raise InvalidRequest(message, param=path)
        seen.add(tool.name)
    size = sum(len(tool.description or "") + len(tool.parameters or "") for tool in tools)
    if size > MAX_CHARS:
        message = f"{name} have {size} characters of descriptions and schemas"
        raise InvalidRequest(f"{message}; at most {MAX_CHARS} are taken", param=name)
    return tuple(tools)


tools_rule = list_of_tools(_tool)


# -- choice ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ToolChoice:
    """`names` are those that may be called; empty for all. `only_one`: of a named tool."""

    mode: str = AUTO
    names: tuple[str, ...] = ()
    only_one: bool = False


MODE = one_of(AUTO, NONE, REQUIRED)
_named_function = object_of({"name": tool_name}, "name")(field_value("name"))
_NAMED = {"type": function_type, "function": _named_function}
_named = object_of(_NAMED, "type", "function")(field_value("function"))


def allowed_fields(named: DescribedRule) -> dict[str, DescribedRule]:
    """The fields of a choice among some of the tools; `named` is the rule of one's name."""
    return {
        "mode": one_of(AUTO, REQUIRED),
        "tools": list_of(named, at_most=MAX_TOOLS, noun="tools"),
    }


def allowed_choice(name: str, read: dict[str, Any]) -> ToolChoice:
    """The choice of such fields. Raises `InvalidRequest` where they name no tool."""
    if not read["tools"]:
        raise InvalidRequest(f"{name}.tools is empty; name a tool", param=f"{name}.tools")
    return ToolChoice(read["mode"], tuple(read["tools"]))


_allowed = object_of(allowed_fields(_named), "mode", "tools")(allowed_choice)
_CHOSEN: dict[str, DescribedRule] = {
    "type": one_of("function", "allowed_tools"),
    "function": _named_function,
    "allowed_tools": _allowed,
}


@object_of(_CHOSEN, "type")
def _chosen(name: str, read: dict[str, Any]) -> ToolChoice:
    kind = read["type"]
    require(read, kind, where=name)
    other = "function" if kind == "allowed_tools" else "allowed_tools"
    if other in read:
        path = f"{name}.{other}"
        raise InvalidRequest(f"{path} does not belong to type {kind!r}", param=path)
    if kind == "allowed_tools":
        choice: ToolChoice = read[kind]
        return choice
    return ToolChoice(REQUIRED, (read[kind],), only_one=True)


@described({"anyOf": [MODE.schema, _chosen.schema]})
def tool_choice_rule(name: str, value: Any) -> ToolChoice:
    if not isinstance(value, dict):
        return ToolChoice(MODE.check(name, value))
    choice: ToolChoice = _chosen.check(name, value)
    return choice


def offered_tools(
    tools: Sequence[FunctionTool], choice: ToolChoice | None, parallel: bool | None
) -> OfferedTools | None:
    """None where no tool may be called. Raises `InvalidRequest` for a choice among tools that are
    not there."""
    chosen = choice or ToolChoice()
    known = {tool.name for tool in tools}
    if not tools and (chosen.mode == REQUIRED or chosen.names):
        raise InvalidRequest("tool_choice needs tools, and there are none", param="tool_choice")
    for name in chosen.names:
        if name not in known:
            message = f"tool_choice names {name!r}, which is not one of the tools"
            raise InvalidRequest(message, param="tool_choice")
    if not tools or chosen.mode == NONE:
        return None
    one_at_most = chosen.only_one or parallel is False
    return OfferedTools(tuple(tools), chosen.mode == REQUIRED, chosen.names, not one_at_most)


TOOL_FIELDS: dict[str, DescribedRule] = {
    "tools": said("Functions that the model may call.", tools_rule),
    "tool_choice": said("Whether a tool may or must be called, or which one.", tool_choice_rule),
    "parallel_tool_calls": said("An answer may have several calls.", flag, default=True),
}
"""Fields of a body about tools. `read_tools` makes one value of them."""
OLDER_FIELDS: dict[str, DescribedRule] = {
    "functions": only_values([], why=OLDER_FUNCTIONS),
    "function_call": only_values(NONE, AUTO, why=OLDER_CALL),
}


def read_tools(read: dict[str, Any]) -> OfferedTools | None:
    """Takes the fields of `TOOL_FIELDS` out of `read`."""
    tools, choice, parallel = (read.pop(name, None) for name in TOOL_FIELDS)
    return offered_tools(tools or (), choice, parallel)
