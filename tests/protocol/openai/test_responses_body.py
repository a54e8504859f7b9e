"""The body of `POST /v1/responses`: a chat in other words, and refusals that name the field."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from predictors.errors import InvalidRequest
from predictors.protocol.openai.chat_body import read_chat_body
from predictors.protocol.openai.responses_body import FIELDS, read_responses_body

HELLO = {"model": "m", "input": "hello"}


def body(**fields: Any) -> dict[str, Any]:
    return HELLO | fields


def item(role: str, *parts: Any, **more: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": list(parts)} | more


TEXT = {"type": "input_text", "text": "a"}
PICTURE = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"}
SAID = {"type": "output_text", "text": "b", "annotations": [], "logprobs": []}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
FORMAT = {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}}
OF_CHAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
TOOL = {"type": "function", "name": "count", "parameters": {"type": "object"}, "strict": False}
NESTED = {"type": "function", "function": {"name": "count", "parameters": {"type": "object"}}}
CALLED = {"type": "function_call", "call_id": "c1", "name": "count", "arguments": "{}"}
ANSWERED = {"type": "function_call_output", "call_id": "c1", "output": "3"}
CALL = {"id": "c1", "type": "function", "function": {"name": "count", "arguments": "{}"}}
SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"input": "a"}, {"messages": [{"role": "user", "content": "a"}]}),
    (
        {"instructions": "s", "input": "a"},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]},
    ),
    (
        {"input": [item("user", TEXT, PICTURE)]},
        {"messages": [{"role": "user", "content": [TEXT, PICTURE]}]},
    ),
    (
        {
            "input": [
                {"role": "developer", "content": "s"},
                {"role": "user", "content": "a"},
                {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "xyz"},
                item("assistant", SAID, id="msg_1", status="completed"),
                item("user", TEXT),
            ]
        },
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "a"},
            ]
        },
    ),
    ({"max_output_tokens": 7}, {"max_tokens": 7}),
    (
        {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
        {"tools": [NESTED], "tool_choice": "required", "parallel_tool_calls": False},
    ),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "name": "count"}},
        {"tools": [NESTED], "tool_choice": {"type": "function", "function": {"name": "count"}}},
    ),
    (
        {
            "input": [
                {"role": "user", "content": "a"},
                item("assistant", SAID),
                CALLED | {"id": "fc_1", "status": "completed"},
                CALLED | {"call_id": "c2"},
                ANSWERED | {"output": [TEXT]},
                ANSWERED | {"call_id": "c2"},
                CALLED,
                ANSWERED,
            ]
        },
        {
            "messages": [
                {"role": "user", "content": "a"},
                {
                    "role": "assistant",
                    "content": "b",
                    "tool_calls": [CALL, CALL | {"id": "c2"}],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "a"},
                {"role": "tool", "tool_call_id": "c2", "content": "3"},
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c1", "content": "3"},
            ]
        },
    ),
    (
        {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
        {"logprobs": True, "top_logprobs": 2},
    ),
    ({"text": FORMAT}, {"response_format": OF_CHAT}),
    ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
    ({"structured_outputs": {"choice": ["a"]}}, {"structured_outputs": {"choice": ["a"]}}),
    ({"top_logprobs": 0, "min_p": 0.1}, {"min_p": 0.1}),
    (
        {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 1, "stop": "x", "stream": True},
        {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 1, "stop": "x", "stream": True},
    ),
    ({"min_pixels": 784, "ignore_eos": True}, {"min_pixels": 784, "ignore_eos": True}),
    (
        {
            "store": True,
            "service_tier": "auto",
            "include": ["reasoning.encrypted_content"],
            "max_tool_calls": 3,
            "previous_response_id": None,
            "conversation": None,
            "background": False,
            "truncation": "disabled",
            "reasoning": {"effort": None, "summary": "auto"},
            "text": {"format": {"type": "text"}, "verbosity": "medium"},
            "stream_options": {"include_obfuscation": False},
            "parallel_tool_calls": True,
            "tool_choice": "auto",
        },
        {},
    ),
]


@pytest.mark.parametrize(("fields", "of_chat"), SAME, ids=map(str, range(len(SAME))))
def test_a_body_is_the_chat_that_it_means(fields: dict[str, Any], of_chat: dict[str, Any]) -> None:
    read = read_responses_body(body(**fields))
    chat = {"model": "m", "messages": [{"role": "user", "content": "hello"}]} | of_chat
    assert read.chat == read_chat_body(chat)
    assert (read.model, read.stream, read.n) == ("m", "stream" in fields, 1)
    assert pickle.loads(pickle.dumps(read)) == read  # large ones come from a worker process


def test_the_answer_repeats_what_is_in_force() -> None:
    given = {"metadata": {"a": "b"}, "instructions": "s", "max_output_tokens": 3, "user": "me"}
    shown = read_responses_body(body(store=True, **given)).shown
    assert {name: shown[name] for name in given} == given
    assert (shown["store"], shown["previous_response_id"]) == (False, None)
    assert shown["text"] == {"format": {"type": "text"}, "verbosity": "medium"}
    shown = read_responses_body(body(text=FORMAT, tools=[TOOL], tool_choice="required")).shown
    assert (shown["text"]["format"], shown["tool_choice"]) == (FORMAT["format"], "required")
    assert shown["tools"] == [TOOL]


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"input": None}, "input", "is required"),
    ({"model": None}, "model", "is required"),
    ({"input": 3}, "input", "a string or a list of items"),
    ({"input": []}, "input", "is empty"),
    ({"input": [{"type": "reasoning"}]}, "input", "is empty"),
    ({"input": ["a"]}, "input[0]", "an object"),
    ({"input": [{"type": 3}]}, "input[0].type", "a string"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "answers are not kept"),
    ({"input": [{"type": "web_search_call"}]}, "input[0].type", "no built-in tools"),
    ({"input": [TEXT]}, "input[0].type", "part of a message's content"),
    ({"input": [{"content": "a"}]}, "input[0].role", "is required"),
    ({"input": [{"role": "user"}]}, "input[0].content", "is required"),
    ({"input": [{"role": "tool", "content": "a"}]}, "input[0].role", "must be"),
    ({"input": [item("user", {"type": "input_file"})]}, "input[0].content[0].type", "supported"),
    ({"input": [item("user", TEXT, x=1)]}, "input[0].x", "unknown field"),
    ({"input": [item("assistant", PICTURE)]}, "input[0].content[0]", "user messages"),
    ({"input": [{"role": "user", "content": "a"}] * 1025}, "input", "at most 1024"),
    ({"instructions": ["a"]}, "instructions", "a string"),
    ({"instructions": "a" * (2**21 + 1)}, "instructions", "at most"),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "answers are not kept"),
    ({"conversation": {"id": "c"}}, "conversation", "answers are not kept"),
    ({"background": True}, "background", "its request ends"),
    ({"prompt": {"id": "p"}}, "prompt", "templates are not kept"),
    ({"truncation": "auto"}, "truncation", "not shortened"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "no tools of its own"),
    ({"tools": [TOOL | {"function": {}}]}, "tools[0].function", "unknown field"),
    ({"tools": [TOOL, TOOL]}, "tools[1]", "rename one"),
    ({"tools": [{"type": "function"}]}, "tools[0].name", "is required"),
    ({"tool_choice": "required"}, "tool_choice", "needs tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice", "names"),
    ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice.type", "no tools of"),
    ({"input": [CALLED]}, "input[0].call_id", "no answer before the end of input"),
    (
        {"input": [CALLED, {"role": "user", "content": "a"}]},
        "input[0].call_id",
        r"before input\[1\]",
    ),
    ({"input": [ANSWERED]}, "input[0].call_id", "is of no call"),
    ({"input": [CALLED | {"arguments": "{"}]}, "input[0].arguments", "JSON"),
    ({"input": [CALLED | {"arguments": "[]"}]}, "input[0].arguments", "object"),
    ({"input": [CALLED | {"name": "a b"}]}, "input[0].name", "letters"),
    ({"input": [CALLED | {"call_id": ""}]}, "input[0].call_id", "1 to"),
    ({"input": [CALLED, ANSWERED | {"output": 3}]}, "input[1].output", "a string or a list"),
    ({"input": [CALLED, ANSWERED | {"output": [PICTURE]}]}, "input[1].output[0]", "pictures"),
    ({"top_logprobs": 2}, "top_logprobs", "needs include"),
    ({"top_logprobs": 21}, "top_logprobs", "whole number"),
    ({"reasoning": {"effort": "high"}}, "reasoning.effort", "reasons"),
    ({"include": ["x"]}, "include[0]", "must be"),
    ({"include": ["reasoning.encrypted_content"] * 17}, "include", "at most 16"),
    ({"metadata": {"a": 1}}, "metadata.a", "must be a string, not 1"),
    ({"metadata": {f"{i}": "" for i in range(17)}}, "metadata", "at most 16"),
    ({"metadata": {"a": "b" * 513}}, "metadata", "at most 64"),
    ({"max_output_tokens": 0}, "max_output_tokens", "whole number"),
    ({"max_output_tokens": -1}, "max_output_tokens", "whole number"),
    ({"max_tokens": 3}, "max_tokens", "called max_output_tokens"),
    ({"messages": []}, "messages", "called input"),
    ({"n": 2}, "n", "one answer"),
    ({"max_output_token": 2}, "max_output_token", "did you mean"),
    ({"text": {"format": {}}}, "text.format.type", "is required"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type", "must be 'text'"),
    ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema", "required"),
    ({"text": FORMAT, "guided_regex": "a"}, "guided_regex", "both set"),
    ({"temperature": 3}, "temperature", "from 0 to 2"),
    ({"stream_options": {"include_usage": True}}, "stream_options.include_usage", "unknown"),
]


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED, ids=map(str, range(len(REFUSED))))
def test_a_wrong_body_is_refused_by_the_name_of_its_field(
    fields: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        read_responses_body(body(**fields))
    assert refused.value.param == param


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_null_is_the_same_as_leaving_a_field_out(name: str) -> None:
    if name not in ("model", "input"):
        assert read_responses_body(body(**{name: None})) == read_responses_body(body())
