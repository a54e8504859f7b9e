"""Writes tools, calls and their answers into prompts: by the checkpoint's chat template where that
takes them, else by the Hermes block, which Qwen's own templates have and Qwen2.5-VL's lacks.

A template is tried at the start, since most would drop in silence what they do not know.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

from predictors.chat.request import Message
from predictors.chat.template_options import NOTHING, plain_values
from predictors.chat.tools.tag_reader import CLOSING, OPENING
from predictors.compute.checkpoint.folder import reading
from predictors.errors import EngineFailed, InvalidRequest
from predictors.protocol.openai.tool_calls import ToolCall
from predictors.protocol.openai.tool_fields import FunctionTool, OfferedTools

Turn = Mapping[str, Any]
"""A message as templates take it."""
Render = Callable[[Sequence[Turn], Mapping[str, Any]], str]
"""The chat template over messages, with its options."""

TAGS = (OPENING, CLOSING, "<tool_response>", "</tool_response>", "<tools>", "</tools>")
"""Texts that mean something in a prompt with tools; in a caller's text they are plain text."""
_BLOCK = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""
"""Qwen2.5's words."""
_TEXT_BEHIND = (
    "an assistant's text stands behind its call of a tool, and this model's chat template writes "
    "calls behind all text; send the text before the call, or in a message after the call's result"
)
_SYSTEM, _END = "<|im_start|>system\n", "<|im_end|>"


class ToolWay(Enum):
    """How a model's prompts tell it of tools."""

    TEMPLATE = "template"
    """By its chat template."""
    HERMES = "hermes"
    """By the block that is added here."""
    NONE = "none"


class ToolPrompts:
    """The prompts of one model with tools. Any thread.

    `mark` is a text that the template must pass on as it is. `hides_tags`: the tokenizer leaves the
    tags out of an answer's text, so that no call could be read.
    """

    def __init__(self, render: Render, mark: str, *, hides_tags: bool = False) -> None:
        self._system = _own_system(render)
        self.way, self.problem = ToolWay.NONE, ""
        if hides_tags:
            self.problem = f"its tokenizer hides {OPENING} in answers"
        elif _shows(render, _probe(mark), [_probe_tool(mark)], mark):
            self.way = ToolWay.TEMPLATE
        elif _has_other_format(render, mark):
            self.problem = "its chat template writes tools in a format that is not read here"
        elif _shows(render, self._with_block(_probe(mark), [_probe_tool(mark)]), None, mark):
            self.way = ToolWay.HERMES
        else:
            self.problem = "its chat template loses messages with tools"
        self.takes_text_behind_calls = self.way is ToolWay.HERMES or (
            self.way is ToolWay.TEMPLATE and _takes_written_calls(render, mark)
        )

    def write(
        self,
        messages: Sequence[Message],
        contents: Sequence[Any],
        offered: OfferedTools | None,
        plain: Callable[[str], str],
    ) -> tuple[Sequence[Turn], Mapping[str, Any]]:
        """The messages, and the template's options for them. `contents` are those of the messages
        as templates take them; `plain` makes plain text of a caller's text.

        Templates write an assistant's calls behind its text. Calls with text behind them are
        written into the text here, where that is the same to the template. Raises `InvalidRequest`
        where it is not, and where the model can't be told of tools.
        """
        if self.way is ToolWay.NONE:
            param = "messages" if offered is None else "tools"
            raise InvalidRequest(f"this model takes no tools: {self.problem}", param=param)
        if not self.takes_text_behind_calls and any(message.calls_at for message in messages):
            raise InvalidRequest(_TEXT_BEHIND, param="messages")
        turns = _turns(messages, contents, plain)
        tools = [] if offered is None else [_described(tool, plain) for tool in offered.tools]
        if self.way is ToolWay.TEMPLATE:
            return turns, {"tools": tools} if tools else NOTHING
        return self._with_block(turns, tools), NOTHING

    def _with_block(
        self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]]
    ) -> Sequence[Turn]:
        """The conversation in messages of text alone, as Qwen2.5's template writes it."""
        written: list[Turn] = []
        for is_answer, run in itertools.groupby(turns, lambda turn: turn["role"] == "tool"):
            if is_answer:
                answers = [f"<tool_response>\n{turn['content']}\n</tool_response>" for turn in run]
                written.append({"role": "user", "content": "\n".join(answers)})
            else:
                written += map(_with_calls, run)
        if not tools:
            return written
        block = _BLOCK.format(tools="\n".join(json.dumps(t, ensure_ascii=False) for t in tools))
        system = self._system
        if written and written[0]["role"] == "system":
            system = written.pop(0)["content"]
        opening = f"{system}\n\n{block}" if system else block
        return [{"role": "system", "content": opening}, *written]


def _described(tool: FunctionTool, plain: Callable[[str], str]) -> Mapping[str, Any]:
    """The tool in OpenAI's form."""
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = plain(tool.description)
    if tool.parameters is not None:
        function["parameters"] = plain_values(json.loads(tool.parameters), plain)
    return {"type": "function", "function": function}


def _turns(
    messages: Sequence[Message], contents: Sequence[Any], plain: Callable[[str], str]
) -> list[Turn]:
    turns: list[Turn] = []
    names: dict[str, str] = {}  # of the calls by id
    for place in _places_by_calls(messages):
        message, content = messages[place], contents[place]
        turn = {"role": message.role, "content": content}
        if message.calls:
            names |= {call.id: call.name for call in message.calls}
            calls = [_described_call(call, plain) for call in message.calls]
            if message.calls_at:
                turn["content"] = _in_order(message, calls, plain)
            else:
                turn["tool_calls"] = calls
        if message.call_id is not None:
            turn |= {"tool_call_id": plain(message.call_id), "name": names[message.call_id]}
        turns.append(turn)
    return turns


def _places_by_calls(messages: Sequence[Message]) -> list[int]:
    """The places of all messages, those of answers in the order of their calls. Templates write no
    ids, so a model takes the first answer for that of the first call."""
    place_of: dict[str, int] = {}  # by the id of a call
    places = []
    for place, message in enumerate(messages):
        if message.calls:
            place_of = {call.id: place + 1 + i for i, call in enumerate(message.calls)}
        answered = message.call_id
        places.append(place if answered is None else place_of[answered])
    return sorted(range(len(messages)), key=places.__getitem__)


def _described_call(call: ToolCall, plain: Callable[[str], str]) -> Mapping[str, Any]:
    arguments = plain_values(json.loads(call.arguments), plain)
    function = {"name": call.name, "arguments": arguments}
    return {"id": plain(call.id), "type": "function", "function": function}


def _in_order(message: Message, calls: Sequence[Turn], plain: Callable[[str], str]) -> str:
    """The texts of an assistant's message, with its described calls at their places."""
    written, begin = [], 0
    for call, end in zip(calls, message.calls_at, strict=True):
        written += [plain("".join(map(str, message.parts[begin:end]))), _written_call(call)]
        begin = end
    written.append(plain("".join(map(str, message.parts[begin:]))))
    return "\n".join(filter(None, written))


def _with_calls(turn: Turn) -> Turn:
    calls = turn.get("tool_calls")
    if not calls:
        return turn
    written = [turn["content"]] if turn["content"] else []
    written += map(_written_call, calls)
    return {"role": turn["role"], "content": "\n".join(written)}


def _written_call(call: Mapping[str, Any]) -> str:
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    called = f'{{"name": "{function["name"]}", "arguments": {arguments}}}'
    return f"{OPENING}\n{called}\n{CLOSING}"


# -- probes ----------------------------------------------------------------------------------------
_USUAL = {"add_generation_prompt": True}


def _own_system(render: Render) -> str:
    """The system message that the template adds to a conversation without one; empty if none."""
    opening = _tried(render, [{"role": "user", "content": "asked"}], {}) or ""
    if not opening.startswith(_SYSTEM):
        return ""
    return opening.removeprefix(_SYSTEM).partition(_END)[0].strip()


def _probe_tool(mark: str) -> Mapping[str, Any]:
    parameters = {"type": "object", "properties": {"probed_value": {"type": "string"}}}
    function = {"name": "probe_tool", "description": f"first{mark}words", "parameters": parameters}
    return {"type": "function", "function": function}


def _probe(mark: str) -> list[Turn]:
    calls = [
        {
            "type": "function",
            "id": f"id{i}",
            "function": {"name": "probe_tool", "arguments": {"probed_value": f"{i}th{mark}value"}},
        }
        for i in (3, 4)
    ]
    return [
        {"role": "system", "content": "rules here"},
        {"role": "user", "content": "second words"},
        {"role": "assistant", "content": "a thought", "tool_calls": calls},
        {"role": "tool", "content": f"5th{mark}words", "tool_call_id": "id3", "name": "probe_tool"},
        {"role": "tool", "content": "6th words", "tool_call_id": "id4", "name": "probe_tool"},
        {"role": "assistant", "content": "", "tool_calls": calls[:1]},
        {"role": "tool", "content": "7th words", "tool_call_id": "id3", "name": "probe_tool"},
    ]


def _shows(
    render: Render, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]] | None, mark: str
) -> bool:
    """True for a prompt that has every part of the probe, in its order, with calls in the format
    that answers are read by."""
    said = _tried(render, turns, {} if tools is None else {"tools": tools})
    if said is None:
        return False
    called = f'{OPENING}\n{{"name": "probe_tool", "arguments": {{"probed_value": "'
    parts = [
        *("rules here", '"probe_tool"', f"first{mark}words", "probed_value", OPENING, CLOSING),
        *("second words", "a thought", f"{called}3th{mark}value", CLOSING),
        *(f"{called}4th{mark}value", CLOSING, f"5th{mark}words", "6th words"),
        *(f"{called}3th{mark}value", CLOSING, "7th words", "assistant"),
    ]
    rest = said
    for part in parts:
        _, found, rest = rest.partition(part)
        if not found:
            return False
    return True


def _takes_written_calls(render: Render, mark: str) -> bool:
    """True where a call within a message's text comes out as the template's own, and the text
    behind it as well."""
    probe = _probe(mark)
    written = [_with_calls(turn) for turn in probe]
    if _tried(render, written, {}) != _tried(render, probe, {}):
        return False
    behind = f"{written[2]['content']}\n8th{mark}words"
    said = _tried(render, [*written[:2], {**written[2], "content": behind}, *written[3:]], {})
    return said is not None and behind in said


def _has_other_format(render: Render, mark: str) -> bool:
    """True where the template writes tools, but asks for calls in other words."""
    asked: list[Turn] = [{"role": "user", "content": "asked"}]
    with_tools = _tried(render, asked, {"tools": [_probe_tool(mark)]})
    if with_tools is None:
        return False
    return "probe_tool" in with_tools and f'{OPENING}\n{{"name":' not in with_tools


def _tried(render: Render, turns: Sequence[Turn], options: Mapping[str, Any]) -> str | None:
    try:
        with reading("the chat template"):  # a template raises anything
            return render(turns, {**_USUAL, **options})
    except EngineFailed:
        return None
