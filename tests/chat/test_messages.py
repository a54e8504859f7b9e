"""The encoder of Anthropic's messages: whole answers, events, and that they agree."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.base import Answer
from predictors.chat.grounding.boxes import PictureBox
from predictors.chat.messages import MessagesEncoder
from predictors.chat.request import ChatDelta, ChatRequest, LastDelta, PictureSize, Sampling
from predictors.protocol.anthropic.messages_body import read_messages_body
from predictors.protocol.call import Call
from predictors.protocol.openai.tool_fields import FunctionTool, OfferedTools

GOLDEN = Path(__file__).parents[1] / "golden" / "anthropic"
CALL = Call({}, protocol="anthropic", request_id="abc")
REQUEST = ChatRequest((), Sampling(), seed=7)
WITH_TOOLS = replace(REQUEST, tools=OfferedTools((FunctionTool("f"), FunctionTool("g"))))
BODY = read_messages_body(
    {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}]}
)
TIMES = {"queue_ms": 1, "compute_ms": 2}
ONE = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
TWO = '<tool_call>\n{"name": "g", "arguments": {"b": "\\ud800", "c": 1e999}}\n</tool_call>'


def encoder(request: ChatRequest = REQUEST) -> MessagesEncoder:
    return MessagesEncoder(BODY, CALL, "float32", [request])


def deltas_of(texts: Sequence[str], reason: str = "stop", **more: Any) -> list[ChatDelta]:
    made = [ChatDelta((i,), 9, i + 1, text) for i, text in enumerate(texts)]
    return [*made, LastDelta((), 9, len(texts) + 1, "", reason, **more)]


def whole_of(chunks: Sequence[ChatDelta], request: ChatRequest = REQUEST) -> dict[str, Any]:
    """The message, as its bytes are read."""
    made = encoder(request).whole([Answer(request, tuple(chunks), 1, 2)])
    found: dict[str, Any] = json.loads(orjson.dumps(made))
    return found


def raw_of(groups: Sequence[Sequence[ChatDelta]], request: ChatRequest = REQUEST) -> bytes:
    made = encoder(request)
    return made.opening() + b"".join(made.deltas(0, group, lambda: TIMES) for group in groups)


def events_of(raw: bytes) -> list[dict[str, Any]]:
    """The events, whose names must be their types."""
    found = []
    for block in raw.split(b"\n\n")[:-1]:
        name, data = block.split(b"\n")
        found.append(json.loads(data.removeprefix(b"data: ")))
        assert name == b"event: " + found[-1]["type"].encode()
    return found


def joined(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The message of a stream, as Anthropic's clients put it together."""
    assert [event["type"] for event in events[:2]] == ["message_start", "ping"]
    message: dict[str, Any] = events[0]["message"]
    inputs: dict[int, str] = {}
    is_open = False
    for event in events[2:]:
        kind = event["type"]
        if kind == "content_block_start":
            assert not is_open
            is_open = True
            assert event["index"] == len(message["content"])
            message["content"].append(event["content_block"])
        elif kind == "content_block_delta":
            assert is_open
            delta, block = event["delta"], message["content"][event["index"]]
            if delta["type"] == "text_delta":
                block["text"] += delta["text"]
            else:
                assert delta["type"] == "input_json_delta"
                inputs[event["index"]] = inputs.get(event["index"], "") + delta["partial_json"]
        elif kind == "content_block_stop":
            is_open = False
        elif kind == "message_delta":
            assert not is_open
            rest = {k: v for k, v in event.items() if k not in ("type", "delta")}
            message |= {**event["delta"], **rest}
    assert events[-1] == {"type": "message_stop"}
    for index, text in inputs.items():
        try:
            message["content"][index]["input"] = json.loads(text)
        except ValueError:
            message["content"][index]["partial_json"] = text
    return message


def same_as(name: str, raw: bytes) -> None:
    """Compare with a golden file. If that is missing, write it and fail."""
    path = GOLDEN / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(raw)
        pytest.fail(f"{path} was written; read it and run again")
    assert raw == path.read_bytes()


def unnumbered(raw: bytes) -> bytes:
    """Without the ids of calls, which are drawn."""
    return re.sub(rb"call_[0-9a-f]{24}", b"call_x", raw)


def test_the_wire_matches_the_golden_files() -> None:
    size = {"pictures": (PictureSize(84, 56, 6),), "cached_tokens": 4}
    same_as("message_stream.sse", raw_of([[x] for x in deltas_of(["a ", "b"], **size)]))
    calls = deltas_of(["I look. ", *ONE, "\n", TWO])
    same_as("message_calls_stream.sse", unnumbered(raw_of([[x] for x in calls], WITH_TOOLS)))
    answered = Answer(WITH_TOOLS, tuple(calls), 1, 2)
    same_as("message_calls.json", unnumbered(orjson.dumps(encoder(WITH_TOOLS).whole([answered]))))


STOPS: list[tuple[str, dict[str, Any], str, str | None]] = [
    ("stop", {}, "end_turn", None),
    ("length", {}, "max_tokens", None),
    ("stop", {"stop_text": "END"}, "stop_sequence", "END"),
]


@pytest.mark.parametrize(("reason", "more", "kind", "sequence"), STOPS)
def test_an_answer_says_why_it_ended(
    reason: str, more: dict[str, Any], kind: str, sequence: str | None
) -> None:
    found = whole_of(deltas_of(["a"], reason, **more))
    assert (found["stop_reason"], found["stop_sequence"]) == (kind, sequence)
    assert found["content"] == [{"type": "text", "text": "a"}]


def test_tokens_of_the_cache_are_counted_apart_and_all_counts_add_up() -> None:
    chunks = deltas_of(["a", "b"], cached_tokens=4, pictures=(PictureSize(84, 56, 6),))
    usage = whole_of(chunks)["usage"]
    assert usage == {
        "input_tokens": 5,
        "output_tokens": 3,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "prompt_images": [{"width": 84, "height": 56, "tokens": 6}],
    }
    first = events_of(raw_of([[x] for x in chunks]))[0]["message"]["usage"]
    assert (first["input_tokens"], first["output_tokens"]) == (9, 1)


def test_a_call_is_a_block_with_its_input_as_the_model_wrote_it() -> None:
    raw = orjson.dumps(
        encoder(WITH_TOOLS).whole([Answer(WITH_TOOLS, tuple(deltas_of([TWO])), 1, 2)])
    )
    assert b'"input":{"b": "\\ud800", "c": 1e999}' in raw
    found = json.loads(raw)
    assert (found["stop_reason"], found["content"][0]["name"]) == ("tool_use", "g")


def test_a_call_that_was_cut_off_keeps_what_came_as_a_text() -> None:
    chunks = deltas_of([ONE[:45]], "length")
    (block,) = whole_of(chunks, WITH_TOOLS)["content"]
    assert (block["input"], block["partial_json"]) == ({}, '{"a": ')
    streamed = joined(events_of(raw_of([[x] for x in chunks], WITH_TOOLS)))
    assert streamed["content"][0]["partial_json"] == '{"a": '
    assert streamed["stop_reason"] == "max_tokens"


def test_an_input_that_is_no_json_does_not_spoil_the_json_of_the_answer() -> None:
    text = '<tool_call>\n{"name": "f", "arguments": {"a": NaN}}\n</tool_call>'
    answered = Answer(WITH_TOOLS, tuple(deltas_of([text])), 1, 2)
    (block,) = orjson.loads(orjson.dumps(encoder(WITH_TOOLS).whole([answered])))["content"]
    assert (block["input"], block["partial_json"]) == ({}, '{"a": NaN}')


def test_boxes_stand_beside_the_content() -> None:
    chunks = deltas_of(["a"], boxes=(PictureBox(0, "cat", (1, 2, 3, 4)),))
    shown = [{"picture": 0, "label": "cat", "box": [1, 2, 3, 4]}]
    assert whole_of(chunks)["boxes"] == shown
    assert joined(events_of(raw_of([chunks])))["boxes"] == shown


def test_an_empty_answer_has_no_block() -> None:
    assert whole_of(deltas_of([]))["content"] == []
    assert joined(events_of(raw_of([deltas_of([])])))["content"] == []


_WORDS = st.sampled_from(("a ", "b", "<tool", "\n", ONE, TWO, ONE[:30], "é")) | st.text(max_size=3)


@given(
    st.lists(_WORDS, max_size=6),
    st.sampled_from(["stop", "length"]),
    st.sampled_from([REQUEST, WITH_TOOLS]),
    st.data(),
)
def test_a_stream_is_the_whole_message_in_parts(
    texts: list[str], reason: str, request: ChatRequest, data: st.DataObject
) -> None:
    chunks = deltas_of(texts, reason)
    groups, rest = [], chunks
    while rest:
        count = data.draw(st.integers(1, len(rest)))
        groups.append(rest[:count])
        rest = rest[count:]
    streamed, whole = joined(events_of(raw_of(groups, request))), whole_of(chunks, request)
    for found in (streamed, whole):
        for block in found["content"]:
            block.pop("id", None)  # drawn at random
    assert streamed == whole
