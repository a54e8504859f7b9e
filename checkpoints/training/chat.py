"""Qwen2.5-VL's chat template, and the same turn written out as a plain string for training.

A picture is its placeholder, repeated once per merged patch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

SYSTEM = "You are a helpful assistant."
IMAGE_TOKENS = 25  # a 128x128 picture becomes 140x140: 10x10 patches, merged 2x2

_PARTS = (
    "{% if MESSAGE['content'] is string %}{{ MESSAGE['content'] }}"
    "{% else %}{% for content in MESSAGE['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
)
_CONTENT = _PARTS.replace("MESSAGE", "message")
TOOLS_ABOVE = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
TOOLS_BELOW = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


def _said(text: str) -> str:
    """A text in the template. As an expression, since a line's end behind a tag is dropped."""
    return "{{ '" + text.replace("\n", "\\n") + "' }}"


# Qwen2.5-VL's template with the tools of Qwen2.5's, whose texts these are.
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% if tools %}<|im_start|>system\n{% if messages[0]['role'] == 'system' %}"
    + _PARTS.replace("MESSAGE", "messages[0]")
    + "{% else %}You are a helpful assistant.{% endif %}"
    + _said(TOOLS_ABOVE)
    + "{% for tool in tools %}"
    + _said("\n")
    + "{{ tool | tojson }}{% endfor %}"
    + _said(TOOLS_BELOW + "<|im_end|>\n")
    + "{% endif %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' and not tools %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% if loop.first and message['role'] == 'system' and tools %}"
    "{% elif message['role'] == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %}<|im_start|>user{% endif %}"
    + _said("\n<tool_response>\n")
    + _CONTENT
    + _said("\n</tool_response>")
    + "{% if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}<|im_end|>\n{% endif %}"
    "{% elif message['role'] == 'assistant' and message['tool_calls'] %}<|im_start|>assistant"
    "{% if message['content'] %}"
    + _said("\n")
    + _CONTENT
    + "{% endif %}{% for tool_call in message['tool_calls'] %}"
    "{% if tool_call['function'] is defined %}{% set tool_call = tool_call['function'] %}"
    "{% endif %}"
    + _said('\n<tool_call>\n{"name": "')
    + "{{ tool_call['name'] }}\", \"arguments\": {{ tool_call['arguments'] | tojson }}"
    + _said("}\n</tool_call>")
    + "{% endfor %}<|im_end|>\n"
    "{% else %}<|im_start|>{{ message['role'] }}\n"
    + _CONTENT
    + "<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IMAGE = "<|vision_start|>" + "<|image_pad|>" * IMAGE_TOKENS + "<|vision_end|>"


def opening(system: str = SYSTEM, tools: Sequence[dict[str, Any]] = ()) -> str:
    """The system turn that every conversation starts with."""
    if tools:
        lines = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools)
        system = f"{system}{TOOLS_ABOVE}{lines}{TOOLS_BELOW}"
    return f"<|im_start|>system\n{system}<|im_end|>\n"


def called(name: str, arguments: dict[str, Any]) -> str:
    """The assistant's text that calls a tool."""
    words = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{words}\n</tool_call>"


def responded(text: str) -> str:
    """The text of a user's turn that holds a tool's answer."""
    return f"<tool_response>\n{text}\n</tool_response>"


def asked(question: str, image: str = "", image_first: bool = True) -> str:
    """One user turn and the opening of the assistant's."""
    content = image + question if image_first else question + image
    return f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


def answered(answer: str) -> str:
    """The assistant's text and its end token."""
    return f"{answer}<|im_end|>"
