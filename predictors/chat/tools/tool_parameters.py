"""The V2 parameters of tools: `tools`, `tool_choice` and `parallel_tool_calls`, the values of the
OpenAI fields with their names. V2's parameters are scalars, so lists and objects are JSON texts.
"""

from __future__ import annotations

from typing import Any, Final

from predictors.errors import InvalidRequest
from predictors.protocol.openai.json_texts import parse_json_text
from predictors.protocol.openai.tool_fields import (
    AUTO,
    MAX_CHARS,
    OfferedTools,
    offered_tools,
    tool_choice_rule,
    tools_rule,
)
from predictors.protocol.v2.values import Parameters, V2Request

TOOL_CALLS: Final = "tool_calls"
"""V2's output: the calls of each row as a JSON text, where tools were offered."""
MAX_TEXT = 2 * MAX_CHARS
_JSON: Final = {"type": "string", "contentMediaType": "application/json"}
TOOL_PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    "tools": {**_JSON, "maxLength": MAX_TEXT, "description": "A list of OpenAI's tools."},
    "tool_choice": {
        "type": "string",
        "maxLength": MAX_TEXT,
        "default": AUTO,
        "description": "auto, none, required, or OpenAI's object as a JSON text.",
    },
    "parallel_tool_calls": {"type": "boolean", "default": True},
}


def read_tool_parameters(parameters: Parameters) -> OfferedTools | None:
    """None where no tool may be called. Raises `InvalidRequest`."""
    tools, choice = parameters.read_text("tools"), parameters.read_text("tool_choice")
    parallel = parameters.read_flag("parallel_tool_calls")
    if tools is None and choice is None:
        return None
    offered: tuple[Any, ...] = ()
    if tools is not None:
        offered = tools_rule("tools", parse_json_text("tools", tools, MAX_TEXT))
    chosen = None
    if choice is not None:
        is_object = choice.lstrip().startswith("{")
        value = parse_json_text("tool_choice", choice, MAX_TEXT) if is_object else choice
        chosen = tool_choice_rule("tool_choice", value)
    return offered_tools(offered, chosen, parallel)


def check_calls_answer(request: V2Request, offered: OfferedTools | None) -> None:
    """Raise `InvalidRequest` for a V2 answer that can't be had: calls in parts, or none at all."""
    if offered is not None and request.parameters.get("stream"):
        message = "stream can't be combined with tools over V2"
        raise InvalidRequest(f"{message}; POST /v1/chat/completions streams calls", param="stream")
    if offered is None and TOOL_CALLS in request.outputs:
        message = f"output {TOOL_CALLS!r} needs the parameter tools"
        raise InvalidRequest(message, param=TOOL_CALLS)
