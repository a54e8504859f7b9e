"""The encoders of responses and completions: whole answers, events, and that they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE

from predictors.base import Answer
from predictors.chat.completions import CompletionsEncoder
from predictors.chat.detokenize import Vocabulary
from predictors.chat.logprobs import LogprobWriters
from predictors.chat.pieces import CallPiece, Piece, TextPiece
from predictors.chat.request import (
    ChatDelta,
    ChatRequest,
    Controls,
    LastDelta,
    PictureSize,
    Sampling,
    ScoredDelta,
    TokenLogprob,
)
from predictors.chat.responses import OutputItems, ResponsesEncoder
from predictors.protocol.call import Call
from predictors.protocol.openai.completions_body import read_completions_body
from predictors.protocol.openai.responses_body import read_responses_body

GOLDEN = Path(__file__).parents[1] / "golden" / "openai"
CALL = Call({}, protocol="openai", request_id="abc")
REQUEST = ChatRequest((), Sampling(0.5, 0.9), seed=7)
TIMES = {"queue_ms": 1, "compute_ms": 2}
SIZE = PictureSize(84, 56, 6)


def events_of(raw: bytes) -> list[dict[str, Any]]:
    """The events, whose names and numbers must be right."""
    found = []
    for block in raw.split(b"\n\n")[:-1]:
        name, data = block.split(b"\n")
        found.append(orjson.loads(data.removeprefix(b"data: ")))
        assert name == b"event: " + found[-1]["type"].encode()
    assert [each["sequence_number"] for each in found] == list(range(len(found)))
    return found


def responses(**fields: Any) -> ResponsesEncoder:
    body = read_responses_body({"model": "m", "input": "a"} | fields)
    return ResponsesEncoder(body, CALL, "float32", [REQUEST])


def deltas_of(texts: Sequence[str], reason: str) -> list[ChatDelta]:
    made = [ChatDelta((i,), 9, i + 1, text) for i, text in enumerate(texts)]
    return [*made, LastDelta((), 9, len(texts) + 1, "", reason, (SIZE,))]


def answer(chunks: Sequence[ChatDelta]) -> Answer[ChatRequest, ChatDelta]:
    return Answer(REQUEST, tuple(chunks), 1, 2)


@pytest.mark.parametrize(("reason", "status"), [("stop", "completed"), ("length", "incomplete")])
def test_a_streamed_response_has_openais_events_in_their_order(reason: str, status: str) -> None:
    encoder = responses(stream=True)
    raw = encoder.opening()
    for delta in deltas_of(["a ", "b"], reason):
        raw += encoder.deltas(0, [delta], lambda: TIMES)
    events = events_of(raw)
    assert [each["type"].removeprefix("response.") for each in events] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta",
        "output_text.delta", "output_text.done", "content_part.done", "output_item.done", status,
    ]  # fmt: skip
    last = events[-1]["response"]
    assert last["status"] == status
    assert last["usage"]["output_tokens"] == 3
    assert last["usage"]["prompt_images"] == [{"width": 84, "height": 56, "tokens": 6}]
    assert (last["temperature"], last["top_p"], last["seed"]) == (0.5, 0.9, 7)
    assert events[0]["response"]["usage"] is None
    cut = {"reason": "max_output_tokens"} if reason == "length" else None
    assert last["incomplete_details"] == cut
    assert events[-2]["item"] == last["output"][0]
    assert last["output"][0]["status"] == status


@given(st.lists(st.text(max_size=3), max_size=6), st.sampled_from(["stop", "length"]), st.data())
def test_a_stream_ends_with_the_whole_response(
    texts: list[str], reason: str, data: st.DataObject
) -> None:
    chunks, encoder = deltas_of(texts, reason), responses()
    raw, rest = encoder.opening(), chunks
    while rest:
        count = data.draw(st.integers(1, len(rest)))
        raw += encoder.deltas(0, rest[:count], lambda: TIMES)
        rest = rest[count:]
    events = events_of(raw)
    whole = responses().whole([answer(chunks)])
    created = events[0]["response"]["created_at"]
    assert events[-1]["response"] == whole | {"created_at": created}
    text = "".join(each["delta"] for each in events if each["type"].endswith("text.delta"))
    assert whole["output"][0]["content"][0]["text"] == text == "".join(texts)
    assert len(whole["output"]) == 1


def same_as(name: str, raw: bytes) -> None:
    """Compare events with a golden file. If that is missing, write it and fail."""
    path = GOLDEN / name
    if not path.exists():
        path.write_bytes(raw)
        pytest.fail(f"{path} was written; read it and run again")
    assert raw == path.read_bytes()


def test_the_events_of_both_routes_match_the_golden_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1.0)
    given = {"instructions": "s", "metadata": {"a": "b"}, "max_output_tokens": 9, "stream": True}
    for name, encoder in (
        ("responses_stream.sse", responses(**given)),
        ("completions_stream.sse", completions(prompt="a", n=1, stream=True, echo=True)),
    ):
        raw = encoder.opening()
        for delta in deltas_of(["a ", "b"], "stop"):
            raw += encoder.deltas(0, [delta], lambda: TIMES)
        same_as(name, raw)


def test_logprobs_stand_beside_each_text_and_all_of_them_at_the_end() -> None:
    tokenizer = Tokenizer(BPE({"a": 0, "b": 1}, []))
    writers = LogprobWriters(Vocabulary(tokenizer))
    row = replace(REQUEST, controls=Controls(logprobs=1))
    scores = [TokenLogprob(i, -0.5 - i, 1, ((i, -0.5 - i), (1 - i, -2.0))) for i in (0, 1)]
    chunks: list[ChatDelta] = [
        ScoredDelta((0,), 9, 1, "a", scores=(scores[0],)),
        LastDelta((1,), 9, 2, "b", "stop", scores=(scores[1],)),
    ]
    body = read_responses_body({"model": "m", "input": "a"})
    encoder = ResponsesEncoder(body, CALL, "float32", [row], writers)
    raw = encoder.opening()
    for delta in chunks:
        raw += encoder.deltas(0, [delta], lambda: TIMES)
    events = events_of(raw)
    (part,) = events[-1]["response"]["output"][0]["content"]
    shown = [(x["token"], x["logprob"], len(x["top_logprobs"])) for x in part["logprobs"]]
    assert shown == [("a", -0.5, 2), ("b", -1.5, 2)]
    pieces = [x["logprobs"] for x in events if x["type"].endswith("text.delta")]
    assert [x for piece in pieces for x in piece] == part["logprobs"]
    older = read_completions_body({"model": "m", "prompt": "a", "logprobs": 1})
    rows = [replace(row, raw_prompt="a")]
    whole = CompletionsEncoder(older, CALL, "float32", rows, writers).whole(
        [Answer(rows[0], tuple(chunks), 1, 2)]
    )
    assert whole["choices"][0]["logprobs"] == {
        "text_offset": [0, 1],
        "tokens": ["a", "b"],
        "token_logprobs": [-0.5, -1.5],
        "top_logprobs": [{"a": -0.5, "b": -2.0}, {"b": -1.5, "a": -2.0}],
    }


def test_calls_are_items_of_their_own_between_texts() -> None:
    pieces: list[Piece] = [
        TextPiece("so "),
        TextPiece("be it"),
        CallPiece(0, "call_a", "count", ""),
        CallPiece(0, "call_a", None, '{"of":'),
        CallPiece(0, "call_a", None, "1}"),
        CallPiece(1, "call_b", "draw", "{}"),
    ]
    items = OutputItems("abc")
    events = [event for piece in pieces for event in items.add([piece])]
    events += list(items.end("incomplete"))
    assert [kind.removeprefix("response.") for kind, _ in events] == [
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
        "output_item.done",
    ]  # fmt: skip
    assert [fields["output_index"] for _, fields in events] == [0] * 7 + [1] * 5 + [2] * 4
    shown = [(each["type"], each["id"], each["status"]) for each in items.items]
    assert shown == [
        ("message", "msg_abc", "completed"),
        ("function_call", "fc_abc_1", "completed"),
        ("function_call", "fc_abc_2", "incomplete"),
    ]
    called = [(x["call_id"], x["name"], x["arguments"]) for x in items.items[1:]]
    assert called == [("call_a", "count", '{"of":1}'), ("call_b", "draw", "{}")]


# -- completions -----------------------------------------------------------------------------------
def completions(**fields: Any) -> CompletionsEncoder:
    body = read_completions_body({"model": "m", "prompt": ["a", "b"], "n": 2} | fields)
    prompts = [each for each in body.prompts for _ in range(body.chat.n)]
    rows = [ChatRequest((), Sampling(), seed=i, raw_prompt=each) for i, each in enumerate(prompts)]
    return CompletionsEncoder(body, CALL, "float32", rows)


def chunks_of(raw: bytes) -> list[dict[str, Any]]:
    return [orjson.loads(line[6:]) for line in raw.split(b"\n\n")[:-1]]


@pytest.mark.parametrize("echo", [False, True])
def test_choices_are_numbered_over_all_prompts_and_prompts_counted_once(echo: bool) -> None:
    rows = [[LastDelta((1,), 5 + i // 2, 2, f"<{i}>", "stop")] for i in range(4)]
    reply = completions(echo=echo).whole([answer(row) for row in rows])
    before = ["a", "a", "b", "b"] if echo else [""] * 4
    texts = [(each["index"], each["text"]) for each in reply["choices"]]
    assert texts == [(i, f"{before[i]}<{i}>") for i in range(4)]
    assert reply["usage"] == {"prompt_tokens": 11, "completion_tokens": 8, "total_tokens": 19}
    assert (reply["object"], reply["id"], reply["seed"]) == ("text_completion", "cmpl-abc", 0)
    encoder = completions(echo=echo, stream=True, stream_options={"include_usage": True})
    raw = encoder.opening()
    for i in (2, 0, 3, 1):
        raw += encoder.deltas(i, rows[i], lambda: TIMES)
    chunks = chunks_of(raw)
    joined = dict.fromkeys(range(4), "")
    for chunk in chunks[:-1]:
        (choice,) = chunk["choices"]
        joined[choice["index"]] += choice["text"]
        assert chunk["usage"] is None
    assert list(joined.items()) == texts
    assert (chunks[-1]["choices"], chunks[-1]["usage"]) == ([], reply["usage"])
    assert chunks[-1]["timings"] == TIMES


def test_counts_come_with_every_chunk_when_asked_for() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    encoder = completions(prompt="a", n=1, stream=True, stream_options=options)
    raw = encoder.deltas(0, [ChatDelta((1,), 5, 1, "x")], dict)
    raw += encoder.deltas(0, [LastDelta((1,), 5, 2, "y", "length")], dict)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks_of(raw)]
    assert counts == [1, 2, 2]
