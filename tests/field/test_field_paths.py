"""A refusal names a field by the path that it has in the caller's own body, on every route."""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from predictors.errors import InvalidRequest
from predictors.protocol.anthropic.messages_body import read_count_body, read_messages_body
from predictors.protocol.openai.chat_body import read_chat_body
from predictors.protocol.openai.completions_body import read_completions_body
from predictors.protocol.openai.edits_body import read_edits_body
from predictors.protocol.openai.images_body import read_images_body
from predictors.protocol.openai.responses_body import read_responses_body
from predictors.protocol.openai.tokens_body import read_detokenize_body, read_tokenize_body
from tests.body_paths import is_there


def _png() -> str:
    file = BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


PNG = _png()
URL = f"data:image/png;base64,{PNG}"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}
FUNCTION = {"name": "count", "description": "Counts.", "parameters": SCHEMA, "strict": True}
SHARED = {
    "model": "m", "temperature": 0.5, "top_p": 0.5, "top_k": 3, "seed": 1, "stream": True,
    "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_p": 0.1,
    "logit_bias": {"1": 2}, "min_tokens": 1, "stop_token_ids": [1], "ignore_eos": False,
    "coordinates": "original", "loras": [{"name": "a", "scale": 1.0}],
}  # fmt: skip
CALL = {"id": "1", "type": "function", "function": {"name": "count", "arguments": "{}"}}
OF_CHAT = {
    "chat_template_kwargs": {"a": 1}, "min_pixels": 784,
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": {"type": "function", "function": {"name": "count"}},
}  # fmt: skip
CHAT = {
    **SHARED, **OF_CHAT, "max_tokens": 9, "stop": ["a"], "n": 2, "logprobs": True,
    "top_logprobs": 2, "stream_options": {"include_usage": True}, "parallel_tool_calls": True,
    "metadata": {"a": "b"}, "modalities": ["text"], "verbosity": "medium",
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [
            {"type": "text", "text": "a"},
            {"type": "image_url", "image_url": {"url": URL, "detail": "low"}, "min_pixels": 784},
            {"type": "image_url", "image_url": URL},
        ]},
        {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "2"}]},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
        {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "3"}]},
    ],
}  # fmt: skip
RESPONSES = {
    **SHARED, "max_output_tokens": 9, "instructions": "s", "parallel_tool_calls": True,
    "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}},
    "tools": [{"type": "function", **FUNCTION}], "top_logprobs": 2,
    "include": ["message.output_text.logprobs"], "metadata": {"a": "b"}, "reasoning": {},
    "tool_choice": {"type": "allowed_tools", "mode": "auto",
                    "tools": [{"type": "function", "name": "count"}]},
    "input": [
        {"role": "user", "content": [
            {"type": "input_text", "text": "a"},
            {"type": "input_image", "image_url": URL, "detail": "low"},
        ]},
        {"type": "message", "role": "assistant", "content": [
            {"type": "output_text", "text": "b", "annotations": []}]},
        {"type": "function_call", "call_id": "1", "name": "count", "arguments": "{}"},
        {"type": "function_call", "call_id": "2", "name": "count", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "3"},
        {"type": "function_call_output", "call_id": "2", "output": "3"},
    ],
}  # fmt: skip
COUNTED = {
    "model": "m", "min_pixels": 784, "chat_template_kwargs": {"a": 1},
    "thinking": {"type": "disabled"},
    "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    "system": [{"type": "text", "text": "s"}],
    "tools": [{"name": "count", "input_schema": SCHEMA, "strict": True}],
    "tool_choice": {"type": "tool", "name": "count", "disable_parallel_tool_use": True},
    "messages": [
        {"role": "user", "content": [
            {"type": "text", "text": "a"},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
        ]},
        {"role": "assistant", "content": [
            {"type": "text", "text": "b"},
            {"type": "tool_use", "id": "1", "name": "count", "input": {}},
            {"type": "tool_use", "id": "2", "name": "count", "input": {"n": 1}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "1", "content": "3"},
            {"type": "tool_result", "tool_use_id": "2", "content": [{"type": "text", "text": "3"}]},
            {"type": "text", "text": "well?"},
        ]},
    ],
}  # fmt: skip
MESSAGES = {**SHARED, **COUNTED, "max_tokens": 9, "stop_sequences": ["a"]}
COMPLETIONS = {
    **{name: value for name, value in SHARED.items() if name != "coordinates"},
    "prompt": ["a", "b"], "max_tokens": 9, "n": 2, "best_of": 2, "logprobs": 2,
    "stop": ["a"], "suffix": None, "response_format": {"type": "json_object"},
}  # fmt: skip
TOKENIZE = {
    "model": "m",
    "messages": CHAT["messages"],
    **{k: OF_CHAT[k] for k in ("tools", "min_pixels")},
}
IMAGES = {
    "model": "m", "prompt": "a", "n": 1, "size": "64x64", "seed": 7, "quality": "high",
    "stream": True,
    "partial_images": 1, "output_format": "jpeg", "output_compression": 80, "background": "opaque",
    "num_inference_steps": 2, "guidance_scale": 3.5, "negative_prompt": "b", "true_cfg_scale": 1,
    "loras": [{"name": "a", "scale": 1.0}], "max_sequence_length": 32,
}  # fmt: skip
BODIES: dict[str, tuple[Callable[[object], object], dict[str, Any]]] = {
    "chat": (read_chat_body, CHAT),
    "responses": (read_responses_body, RESPONSES),
    "messages": (read_messages_body, MESSAGES),
    "count_tokens": (read_count_body, COUNTED),
    "completions": (read_completions_body, COMPLETIONS),
    "tokenize": (read_tokenize_body, TOKENIZE),
    "detokenize": (read_detokenize_body, {"model": "m", "tokens": [1, 2]}),
    "images": (read_images_body, IMAGES),
    "edits": (read_edits_body, {**IMAGES, "image": URL, "strength": 0.5}),
}
ODD: list[Any] = [
    None, True, -1, 2.5, 10**30, "", "x", "https://a.example/x.png", "\ud800", [], {},
    [None], [[]], {"x": 1}, {"type": "x"}, [{"type": "x"}], "x" * 2**19,
]  # fmt: skip

Path = tuple[str | int, ...]


def places_of(value: Any, at: Path = ()) -> Iterator[Path]:
    """The paths of all values within a body."""
    entries: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))
    for key, each in entries:
        yield (*at, key)
        yield from places_of(each, (*at, key))


def mutations(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The body with one value another, left out, given twice, or beside an unknown field."""
    for path in places_of(body):
        for odd in ODD:
            changed, holder = copied(body, path)
            holder[path[-1]] = odd
            yield changed
        changed, holder = copied(body, path)
        if isinstance(holder, list):
            holder.insert(0, holder[path[-1]])
            yield changed
            changed, holder = copied(body, path)
        else:
            holder["qqqqqq"] = 1
            yield changed
            changed, holder = copied(body, path)
        del holder[path[-1]]
        yield changed


def copied(body: dict[str, Any], path: Path) -> tuple[dict[str, Any], Any]:
    """A copy, and what holds the value at `path` there."""
    changed = holder = copy.deepcopy(body)
    for key in path[:-1]:
        holder = holder[key]
    return changed, holder


@pytest.mark.parametrize("route", BODIES)
def test_a_refusal_names_a_field_that_the_body_has_or_lacks(route: str) -> None:
    read, body = BODIES[route]
    read(copy.deepcopy(body))
    wrong, refused = {}, 0
    for changed in mutations(body):
        try:
            read(changed)
        except InvalidRequest as error:
            refused += 1
            named = error.param
            may_lack = "required" in error.message
            if named is None or not is_there(named, changed, may_lack=may_lack):
                wrong[named] = error.message
            elif named not in error.message:
                wrong[named] = f"its message is of another field: {error.message}"
    assert not wrong
    assert refused > 10 * len(body)
