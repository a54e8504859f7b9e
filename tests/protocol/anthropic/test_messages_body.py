"""The bodies of `POST /v1/messages`: a chat in other words, and refusals that name the field."""

from __future__ import annotations

import base64
import json
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.errors import InvalidRequest
from predictors.protocol.anthropic.messages_body import (
    COUNT_FIELDS,
    FIELDS,
    decode_count_body,
    decode_messages_body,
    read_count_body,
    read_messages_body,
)
from predictors.protocol.faults import MAX_MESSAGE
from predictors.protocol.openai.chat_body import read_chat_body

USER = {"role": "user", "content": "hello"}
HELLO: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [USER]}
TEXT = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
SAID = {"type": "text", "text": "b", "citations": None}
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
SOURCE = {"type": "base64", "media_type": "image/png", "data": PNG}
PICTURE = {"type": "image", "source": SOURCE}
OF_CHAT = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
SHAPE = {"type": "object", "properties": {"n": {"type": "integer"}}}
TOOL = {"name": "count", "description": "Counts.", "input_schema": SHAPE}
NESTED = {
    "type": "function",
    "function": {"name": "count", "description": "Counts.", "parameters": SHAPE},
}
USE = {"type": "tool_use", "id": "c1", "name": "count", "input": {"n": 1}}
CALL = {"id": "c1", "type": "function", "function": {"name": "count", "arguments": '{"n": 1}'}}
RESULT = {"type": "tool_result", "tool_use_id": "c1", "content": "3"}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "x"}


def said(role: str, *blocks: Any) -> dict[str, Any]:
    return {"role": role, "content": list(blocks)}


def called(*results: Any, use: Any = USE) -> list[Any]:
    """A call and what follows."""
    return [USER, said("assistant", use), *results]


SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"messages": [said("user", TEXT, TEXT)]},
     {"messages": [said("user", {"type": "text", "text": "a"}, {"type": "text", "text": "a"})]}),
    ({"messages": [said("user", TEXT, PICTURE)]},
     {"messages": [said("user", {"type": "text", "text": "a"}, OF_CHAT)]}),
    ({"system": "s"}, {"messages": [{"role": "system", "content": "s"}, USER]}),
    ({"system": [TEXT, SAID]},
     {"messages": [said("system", {"type": "text", "text": "a"}, {"type": "text", "text": "b"}),
                   USER]}),
    ({"system": []}, {}),
    ({"max_tokens": 3.0}, {"max_tokens": 3}),
    ({"messages": [USER, {"role": "assistant", "content": "b"}, USER]},
     {"messages": [USER, {"role": "assistant", "content": "b"}, USER]}),
    ({"messages": [USER, said("assistant", THOUGHT, SAID), USER]},
     {"messages": [USER, {"role": "assistant", "content": "b"}, USER]}),
    ({"messages": [USER, said("assistant", {"type": "redacted_thinking", "data": "x"}), USER]},
     {"messages": [USER, USER]}),
    ({"messages": [USER, {"role": "assistant", "content": "b"}]},
     {"messages": [USER, {"role": "assistant", "content": "b"}], "continue_final_message": True}),
    ({"messages": [USER, said("assistant", SAID, USE), said("user", RESULT, TEXT)]},
     {"messages": [USER, {"role": "assistant", "content": "b", "tool_calls": [CALL]},
                   {"role": "tool", "tool_call_id": "c1", "content": "3"},
                   {"role": "user", "content": "a"}]}),
    ({"messages": [USER, said("assistant", SAID), said("assistant", USE),
                   said("user", {**RESULT, "content": [TEXT], "is_error": True})]},
     {"messages": [USER, {"role": "assistant", "content": "b", "tool_calls": [CALL]},
                   {"role": "tool", "tool_call_id": "c1", "content": "a"}]}),
    ({"messages": called(said("user", {"type": "tool_result", "tool_use_id": "c1"}))},
     {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]},
                   {"role": "tool", "tool_call_id": "c1", "content": ""}]}),
    ({"tools": [TOOL]}, {"tools": [NESTED]}),
    ({"tools": [TOOL | {"type": "custom", "strict": True}], "tool_choice": {"type": "any"}},
     {"tools": [{**NESTED, "function": NESTED["function"] | {"strict": True}}],  # type: ignore[operator]
      "tool_choice": "required"}),
    ({"tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
     {"tools": [NESTED], "parallel_tool_calls": False}),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "count"}},
     {"tools": [NESTED],
      "tool_choice": {"type": "function", "function": {"name": "count"}}}),
    ({"tools": [TOOL], "tool_choice": {"type": "none"}}, {}),
    ({"stop_sequences": ["x", "y"], "top_k": 3, "top_p": 0.5, "temperature": 0.3, "seed": 4},
     {"stop": ["x", "y"], "top_k": 3, "top_p": 0.5, "temperature": 0.3, "seed": 4}),
    ({"stream": True, "min_pixels": 784, "chat_template_kwargs": {"a": 1}},
     {"stream": True, "min_pixels": 784, "chat_template_kwargs": {"a": 1}}),
    ({"metadata": {"user_id": "u"}, "service_tier": "auto", "thinking": {"type": "disabled"},
      "mcp_servers": [], "output_config": {"effort": "high"}, "container": None}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "chat"), SAME, ids=map(str, range(len(SAME))))
def test_a_body_is_the_chat_that_it_means(fields: dict[str, Any], chat: dict[str, Any]) -> None:
    read = read_messages_body(HELLO | fields)
    assert read.chat == read_chat_body(HELLO | chat)
    assert (read.model, read.n, read.stream) == ("m", 1, bool(fields.get("stream")))
    assert pickle.loads(pickle.dumps(read)) == read


def test_a_schema_of_the_answer_is_that_of_a_chat_and_its_refusals_name_this_field() -> None:
    form = {"type": "json_schema", "schema": SHAPE}
    found = read_messages_body(HELLO | {"output_config": {"format": form}}).chat.answer_format
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": SHAPE}}
    expected = read_chat_body(HELLO | {"response_format": wanted}).answer_format
    assert found == expected
    assert found is not None
    assert found.where == "output_config.format.schema"


def test_a_count_is_of_the_same_conversation() -> None:
    fields = {"system": "s", "tools": [TOOL], "messages": [said("user", TEXT, PICTURE)]}
    counted = read_count_body({"model": "m", **fields})
    whole = read_messages_body(HELLO | fields).chat
    assert counted.chat is not None
    assert (counted.chat.messages, counted.chat.tools) == (whole.messages, whole.tools)
    assert (counted.model, counted.prompt, counted.return_token_strs) == ("m", None, False)
    with pytest.raises(InvalidRequest, match="unknown field 'max_tokens'"):
        read_count_body(HELLO)
    assert COUNT_FIELDS.keys() < FIELDS.keys()


LONG = "a" * (2**21 + 1)
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"max_tokens": None}, "max_tokens", "required"),
    ({"max_tokens": 0}, "max_tokens", "whole number from 1"),
    ({"max_tokens": -1}, "max_tokens", "whole number from 1"),
    ({"model": None}, "model", "required"),
    ({"messages": None}, "messages", "required"),
    ({"messages": []}, "messages", "empty"),
    ({"messages": "hello"}, "messages", "list of messages"),
    ({"messages": [USER] * 1025}, "messages", "at most 1024"),
    ({"messages": [{"role": "system", "content": "a"}]}, "messages[0].role", "user"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
    ({"messages": [said("user")]}, "messages[0].content", "no blocks"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "list of blocks"),
    ({"messages": [said("user", "a")]}, "messages[0].content[0]", "object with a type"),
    ({"messages": [said("user", {"text": "a"})]}, "messages[0].content[0].type", "required"),
    ({"messages": [said("user", {"type": 3})]}, "messages[0].content[0].type", "string"),
    ({"messages": [said("user", {"type": "document"})]}, "messages[0].content[0].type",
     "text, image and tool_result"),
    ({"messages": [said("user", TEXT | {"txt": 1})]}, "messages[0].content[0].txt", "unknown"),
    ({"messages": [said("user", TEXT | {"text": LONG})]}, "messages[0].content[0].text",
     "at most"),
    ({"messages": [{"role": "user", "content": LONG}]}, "messages[0].content", "at most"),
    ({"messages": [said("user", *[TEXT] * 1025)]}, "messages[0].content", "at most 1024"),
    ({"messages": [said("user", {"type": "image"})]}, "messages[0].content[0].source", "required"),
    ({"messages": [USER, said("assistant", PICTURE)]}, "messages[1].content[0].type",
     "text and tool_use"),
    ({"messages": [USER, said("assistant", USE)]}, "messages[1].content[0].id",
     "a tool_result block"),
    ({"messages": called(USER)}, "messages[1].content[0].id", "no answer before messages[2]"),
    ({"messages": [said("user", RESULT)]}, "messages[0].content[0].tool_use_id", "is of no call"),
    ({"messages": called(said("user", TEXT, RESULT))}, "messages[2].content[1]", "before texts"),
    ({"messages": called(said("user", RESULT | {"content": [PICTURE]}))},
     "messages[2].content[0].content[0].type", "results of tools are texts"),
    ({"messages": called(said("user", RESULT), use=USE | {"input": "{}"})},
     "messages[1].content[0].input", "an object"),
    ({"messages": called(said("user", RESULT), use=USE | {"input": {"a": "x" * 2**18}})},
     "messages[1].content[0].input", "at most"),
    ({"messages": called(said("user", RESULT), use=USE | {"name": "a b"})},
     "messages[1].content[0].name", "letters"),
    ({"messages": called(said("user", RESULT), use=USE | {"partial_json": "{"})},
     "messages[1].content[0].partial_json", "cut off"),
    ({"messages": [USER, said("assistant", USE, USE)]}, "messages[1].content[1].id", "as well"),
    ({"messages": [USER, said("assistant", *[USE | {"id": f"c{i}"} for i in range(129)])]},
     "messages[1].content", "at most 128"),
    ({"messages": [USER, {"role": "assistant", "content": " "}]}, "messages", "no text"),
    ({"system": [PICTURE]}, "system[0].type", "text blocks"),
    ({"system": 3}, "system", "list of blocks"),
    ({"stop_sequences": [""]}, "stop_sequences", "empty string"),
    ({"stop_sequences": ["a"] * 17}, "stop_sequences", "at most 16"),
    ({"tools": [TOOL, TOOL]}, "tools[1]", "rename"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type",
     "no tools of its own"),
    ({"tools": [{"name": "a"}]}, "tools[0].input_schema", "required"),
    ({"tools": [TOOL | {"input_schema": {"type": "array"}}]}, "tools[0].input_schema.type",
     "object"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name", "required"),
    ({"tools": [TOOL], "tool_choice": {"type": "any", "name": "count"}}, "tool_choice.name",
     "type 'tool'"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice", "not one of"),
    ({"tool_choice": {"type": "any"}}, "tool_choice", "needs tools"),
    ({"tool_choice": "any"}, "tool_choice", "object"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking", "reasons"),
    ({"mcp_servers": [{"url": "x"}]}, "mcp_servers", "no tools of its own"),
    ({"container": "x"}, "container", "no tools of its own"),
    ({"output_config": {"effort": "max"}}, "output_config.effort", "reasons"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema",
     "required"),
    ({"n": 2}, "n", "unknown field"),
    ({"max_token": 2}, "max_token", "did you mean 'max_tokens'"),
    ({"temperature": 3}, "temperature", "from 0 to 2"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED, ids=map(str, range(len(REFUSED))))
def test_what_is_wrong_is_refused_by_its_name(
    fields: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_messages_body(HELLO | fields)
    assert refused.value.param == param
    assert words in refused.value.message


PICTURES: list[tuple[dict[str, Any], str, str]] = [
    ({"type": "url", "url": "https://example.com/a.png"}, "url", "fetches none"),
    ({"type": "url", "url": "/etc/passwd"}, "url", "not a data URL"),
    ({"type": "url"}, "url", "required"),
    ({"type": "base64", "data": "*"}, "data", "not base64"),
    ({"type": "base64", "data": "https://example.com/a.png"}, "data", "fetches none"),
    ({"type": "base64", "url": "data:,"}, "data", "required"),
    (SOURCE | {"url": "data:,"}, "url", "does not belong"),
    ({"type": "file", "file_id": "f"}, "", "files are not kept"),
    ({"type": "gcs"}, "type", "must be 'base64' or 'url'"),
]


@pytest.mark.parametrize(("source", "field", "words"), PICTURES)
def test_pictures_come_in_the_body_and_nothing_is_fetched(
    source: dict[str, Any], field: str, words: str
) -> None:
    block = {"type": "image", "source": source}
    with pytest.raises(InvalidRequest) as refused:
        read_messages_body(HELLO | {"messages": [said("user", block)]})
    path = "messages[0].content[0].source"
    assert refused.value.param == (f"{path}.{field}" if field else path)
    assert words in refused.value.message


def test_a_data_url_is_the_same_picture() -> None:
    source = {"type": "url", "url": f"data:image/png;base64,{PNG}"}
    one, other = (
        read_messages_body(HELLO | {"messages": [said("user", {"type": "image", "source": each})]})
        for each in (SOURCE, source)
    )
    assert one == other


# -- anything --------------------------------------------------------------------------------------
_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)
_NAMES = (*FIELDS, "role", "content", "text", "source", "type", "id", "input", "tool_use_id")
_PARTS = (HELLO, USER, TEXT, PICTURE, SOURCE, USE, RESULT, THOUGHT, TOOL, [USER], [TEXT], [USE])
_LIKELY = st.recursive(
    _ANY | st.sampled_from(_PARTS) | st.sampled_from(("user", "assistant", "any", "tool", "url")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=4)
        | inner.map(lambda x: [said("user", x)])
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(_NAMES), _LIKELY, max_size=5), st.booleans())
def test_any_body_is_read_or_refused(fields: dict[str, Any], whole: bool) -> None:
    body = HELLO | fields if whole else fields
    raw = json.dumps(body).encode("utf-8", "surrogatepass")
    for decode in (decode_messages_body, decode_count_body):
        try:
            decoded = decode(raw)
        except InvalidRequest:  # no JSON: infinity, half a surrogate pair
            return
        if decoded.refusal is None:
            assert decoded.body is not None
        else:
            assert len(decoded.refusal.message) < MAX_MESSAGE
            assert " at 0x" not in decoded.refusal.message
