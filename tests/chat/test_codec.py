"""V2 and OpenAI chat on one side, requests and answers on the other."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import orjson
import pytest

from predictors.base import Answer
from predictors.chat.chunks import ChunkEncoder
from predictors.chat.codec import ChatCodec
from predictors.chat.pixel_bounds import PixelBounds, PixelLimits
from predictors.chat.request import (
    ChatDelta,
    ChatRequest,
    LastDelta,
    Message,
    Picture,
    PictureSize,
    Sampling,
)
from predictors.errors import InvalidRequest, TooLarge
from predictors.protocol.call import Call
from predictors.protocol.openai.chat_body import ChatBody, read_chat_body
from predictors.protocol.v2.values import Tensor, V2Request

DEFAULTS = Sampling(temperature=1e-6, repetition_penalty=1.05)
PIXELS = PixelLimits(3136, 1_100_000, 1_000_000, 784)
CODEC = ChatCodec(DEFAULTS, "float32", 3, PIXELS)
CALL = Call({}, protocol="openai", request_id="abc")
URL = "data:image/png;base64," + base64.b64encode(b"file").decode()


def column(name: str, *rows: bytes, text: bool = True) -> Tensor:
    return Tensor(name, "BYTES", (len(rows),), rows, text=text)


def v2(*tensors: Tensor, **parameters: Any) -> list[ChatRequest]:
    return CODEC.decode_v2(V2Request("m", "1", tensors, parameters))


def body(content: Any, **fields: Any) -> ChatBody:
    messages = [{"role": "user", "content": content}]
    return read_chat_body({"model": "qwen-vl", "messages": messages, **fields})


def answer(request: ChatRequest, *deltas: ChatDelta, ms: int = 5) -> Answer[Any, Any]:
    return Answer(request, deltas, queue_ms=ms, compute_ms=2 * ms)


# -- V2 ------------------------------------------------------------------------------------------
def test_each_row_is_a_chat_of_picture_and_prompt() -> None:
    rows = v2(column("prompt", b"a", "ü".encode()), column("image", b"x", b"y", text=False))
    assert [row.messages for row in rows] == [
        (Message("user", (Picture(b"x"), "a")),),
        (Message("user", (Picture(b"y"), "ü")),),
    ]


def test_a_picture_in_json_is_base64_and_raw_elsewhere() -> None:
    encoded = base64.b64encode(b"file")
    (row,) = v2(column("prompt", b"a"), column("image", encoded))
    assert row.messages[0].parts[0] == Picture(b"file")


def test_defaults_hold_until_a_field_is_named() -> None:
    (row,) = v2(column("prompt", b"a"))
    assert (row.sampling, row.max_tokens, row.stop) == (DEFAULTS, None, ())
    (row,) = v2(column("prompt", b"a"), temperature=0.5, top_k="7", presence_penalty=1)
    assert row.sampling == Sampling(0.5, 1.0, 7, 1.05, 1.0, 0.0)
    (row,) = v2(column("prompt", b"a"), top_k=-1)
    assert row.sampling.top_k == 0


def test_rows_count_their_seeds_from_the_parameter() -> None:
    rows = v2(column("prompt", b"a", b"b"), seed=2**53 - 2)
    assert [row.seed for row in rows] == [2**53 - 2, 2**53 - 1]
    first, second = v2(column("prompt", b"a", b"b"))
    assert second.seed == first.seed + 1
    assert v2(column("prompt", b"a"))[0].seed != first.seed


def test_a_seed_that_would_pass_the_largest_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="passes the largest seed"):
        v2(column("prompt", b"a", b"b", b"c"), seed=2**53 - 2)


def test_parameters_that_need_no_codec_are_let_through() -> None:
    (row,) = v2(
        column("prompt", b"a"),
        stop='["x", "\\n"]',
        system_prompt="be brief",
        max_tokens="5",
        timeout=1000,
        binary_data_output=True,
    )
    assert (row.stop, row.max_tokens) == (("x", "\n"), 5)
    assert row.messages[0] == Message("system", ("be brief",))
    (marked,) = v2(column("prompt", b"a"), stop='\ufeff["x"]')
    assert marked.stop == ("x",)


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": "nan"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**12}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"seed": -2}, "seed"),
        ({"seed": 2**53}, "seed"),
        ({"stop": "x"}, "stop"),
        ({"stop": '{"a": 1}'}, "stop"),
        ({"stop": '[""]'}, "stop"),
        ({"stop": "[1]"}, "stop"),
        ({"stop": json.dumps(["x"] * 10_000)}, "stop"),
        ({"stop": "[" * 100_000}, "stop"),
        ({"stop": '["\\ud800"]'}, "stop"),
        ({"system_prompt": 5}, "system_prompt"),
        ({"num_inference_steps": 4}, "num_inference_steps"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(parameters: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        v2(column("prompt", b"a"), **parameters)
    assert error.value.param == param


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ((), "'prompt' is required"),
        ((column("image", b"x", text=False),), "'prompt' is required"),
        ((column("prompt", b"a", b"b"), column("image", b"x", text=False)), "disagree"),
        ((column("prompt", b"a"), column("image", b"", text=False)), "row 0: image is empty"),
        ((column("prompt", b"a"), column("image", b"?!")), "row 0: image is not base64"),
        ((column("prompt", b"a", b"\xff"),), "row 1: prompt is not UTF-8"),
        ((column("prompt", b"a"), column("mask", b"x")), "unknown input 'mask'"),
    ],
)
def test_wrong_inputs_are_refused_and_the_row_named(tensors: Any, match: str) -> None:
    with pytest.raises(InvalidRequest, match=match):
        v2(*tensors)


def test_answers_become_columns_with_the_times_of_the_slowest() -> None:
    rows = v2(column("prompt", b"a", b"b"), seed=5)
    answers = [
        answer(
            rows[0],
            ChatDelta((1,), 9, 1, "he"),
            LastDelta((2,), 9, 2, "y", "stop", (PictureSize(84, 56, 6),)),
            ms=3,
        ),
        answer(rows[1], ChatDelta((3,), 8, 1, "ü", "length"), ms=4),
    ]
    response = CODEC.encode_v2(V2Request("m", "7", ()), answers)
    assert {t.name: (t.datatype, t.shape, list(t.data)) for t in response.outputs} == {
        "text": ("BYTES", (2,), [b"hey", "ü".encode()]),
        "finish_reason": ("BYTES", (2,), [b"stop", b"length"]),
        "prompt_tokens": ("INT64", (2,), [9, 8]),
        "completion_tokens": ("INT64", (2,), [2, 1]),
        "image_width": ("INT64", (2,), [84, 0]),
        "image_height": ("INT64", (2,), [56, 0]),
        "image_tokens": ("INT64", (2,), [6, 0]),
    }
    assert response.parameters == {
        "precision": "float32",
        "queue_ms": 4,
        "compute_ms": 8,
        "seed": 5,
    }


@pytest.mark.parametrize(
    ("parameters", "bounds"),
    [
        ({}, None),
        ({"detail": "auto"}, None),
        ({"detail": "low"}, PixelBounds(3136, 262_144)),
        ({"detail": "high"}, PixelBounds(3136, 1_100_000)),
        ({"max_pixels": "5000", "min_pixels": 4000}, PixelBounds(4000, 5000)),
        ({"max_pixels": 5000, "detail": "low"}, PixelBounds(3136, 5000)),
    ],
)
def test_v2_parameters_choose_the_pixels_of_every_row(
    parameters: dict[str, Any], bounds: PixelBounds | None
) -> None:
    images = column("image", b"x", b"y", text=False)
    rows = v2(column("prompt", b"a", b"b"), images, **parameters)
    assert [picture.bounds for row in rows for picture in row.pictures] == [bounds, bounds]


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"max_pixels": 0}, "max_pixels"),
        ({"max_pixels": 1_100_001}, "max_pixels"),
        ({"max_pixels": 2**31}, "max_pixels"),
        ({"min_pixels": "x"}, "min_pixels"),
        ({"min_pixels": 6000, "max_pixels": 5000}, "min_pixels"),
        ({"detail": "tiny"}, "detail"),
        ({"detail": 1}, "detail"),
    ],
)
def test_wrong_pixels_are_refused_with_or_without_a_picture(
    parameters: dict[str, Any], param: str
) -> None:
    for images in ((), (column("image", b"x", text=False),)):
        with pytest.raises(InvalidRequest) as refused:
            v2(column("prompt", b"a"), *images, **parameters)
        assert refused.value.param == param


# -- OpenAI chat ---------------------------------------------------------------------------------
def test_a_chat_body_becomes_n_requests() -> None:
    content = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": URL}},
        {"type": "text", "text": "b"},
    ]
    fields = {"n": 2, "seed": 4, "stop": "x", "max_completion_tokens": 6, "ignore_eos": True}
    requests = CODEC.decode_chat(body(content, temperature=0.7, top_k=5, **fields))
    assert [r.seed for r in requests] == [4, 5]
    first = requests[0]
    assert first.messages == (Message("user", ("a", Picture(b"file"), "b")),)
    assert first.sampling == Sampling(0.7, 1.0, 5, 1.05)
    assert (first.stop, first.max_tokens, first.ignore_eos) == (("x",), 6, True)


def test_both_protocols_have_the_same_defaults() -> None:
    (from_chat,) = CODEC.decode_chat(body("a", seed=1))
    (from_v2,) = v2(column("prompt", b"a"), seed=1)
    assert from_chat == from_v2


@pytest.mark.parametrize(
    "url", ["http://example.com/a.png", "file:///etc/passwd", "data:,x", "nonsense"]
)
def test_only_data_urls_are_read(url: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        CODEC.decode_chat(body([{"type": "image_url", "image_url": {"url": url}}]))
    assert "/etc" not in str(error.value)
    assert str(error.value.param).startswith("messages[0].content[0]")


def test_too_many_pictures_are_refused() -> None:
    part = {"type": "image_url", "image_url": {"url": URL}}
    assert len(CODEC.decode_chat(body([part] * 3))[0].messages[0].parts) == 3
    with pytest.raises(TooLarge, match="4 pictures; at most 3"):
        CODEC.decode_chat(body([part] * 4))


def test_a_picture_may_be_read_otherwise_than_the_others() -> None:
    def part(detail: str | None = None, **own: int) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": URL, "detail": detail}, **own}

    ample = replace(CODEC, max_images=5)

    def bounds(*parts: dict[str, Any], **fields: Any) -> list[PixelBounds | None]:
        (request,) = ample.decode_chat(body(list(parts), **fields))
        return [picture.bounds for picture in request.pictures]

    parts = part(), part("auto"), part("low"), part("high"), part("low", max_pixels=5000)
    assert bounds(*parts) == [
        None,
        None,
        PixelBounds(3136, 262_144),
        PixelBounds(3136, 1_100_000),
        PixelBounds(3136, 5000),
    ]
    assert bounds(*parts, max_pixels=500_000, min_pixels=4000) == [
        PixelBounds(4000, 500_000),
        PixelBounds(4000, 500_000),
        PixelBounds(4000, 262_144),
        PixelBounds(4000, 1_100_000),
        PixelBounds(4000, 5000),
    ]
    assert bounds(part(min_pixels=7000), max_pixels=8000) == [PixelBounds(7000, 8000)]


def test_a_picture_with_wrong_pixels_is_named() -> None:
    parts = [{"type": "image_url", "image_url": {"url": URL}} for _ in range(2)]
    with pytest.raises(
        InvalidRequest, match=r"content\[1\].image_url: max_pixels 2000000"
    ) as error:
        CODEC.decode_chat(body([parts[0], parts[1] | {"max_pixels": 2_000_000}]))
    assert error.value.param == "messages[0].content[1].image_url"
    with pytest.raises(InvalidRequest, match="2000000 is above the 1100000") as error:
        CODEC.decode_chat(body("no picture", max_pixels=2_000_000))
    assert error.value.param == "max_pixels"


def test_a_whole_chat_counts_the_prompt_once() -> None:
    asked = body("a", n=2, seed=3)
    requests = CODEC.decode_chat(asked)
    answers = [
        answer(requests[0], ChatDelta((1,), 9, 1, "one", "stop")),
        answer(requests[1], ChatDelta((1, 2), 9, 2, "two", "length"), ms=7),
    ]
    reply = ChunkEncoder(asked, CALL, "float32", requests).whole(answers)
    assert reply["object"] == "chat.completion"
    assert (reply["id"], reply["model"]) == ("chatcmpl-abc", "qwen-vl")
    found = [(c["index"], c["message"]["content"], c["finish_reason"]) for c in reply["choices"]]
    assert found == [(0, "one", "stop"), (1, "two", "length")]
    assert reply["usage"] == {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    assert reply["timings"] == {"queue_ms": 7, "compute_ms": 14}
    assert (reply["precision"], reply["seed"]) == ("float32", 3)


def stream(with_usage: bool, in_every_chunk: bool = False) -> list[dict[str, Any]]:
    options = {"include_usage": with_usage, "continuous_usage_stats": in_every_chunk}
    asked = body("a", n=2, seed=1, stream=True, stream_options=options)
    encoder = ChunkEncoder(asked, CALL, "float32", CODEC.decode_chat(asked))
    timings = lambda: {"queue_ms": 1, "compute_ms": 2}  # noqa: E731
    events = encoder.opening()
    events += encoder.deltas(0, [ChatDelta((1,), 9, 1, "he")], timings)
    events += encoder.deltas(1, [ChatDelta((1,), 9, 1, "x", "length")], timings)
    events += encoder.deltas(0, [ChatDelta((2,), 9, 2, "", "stop")], timings)
    return chunks_of(events)


def chunks_of(events: bytes) -> list[dict[str, Any]]:
    return [orjson.loads(line[6:]) for line in events.split(b"\n\n")[:-1]]


def test_a_stream_opens_with_roles_and_ends_with_reasons_and_times() -> None:
    chunks = stream(with_usage=False)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [c["delta"].get("role") for c in choices[:2]] == ["assistant", "assistant"]
    texts = [(c["index"], c["delta"]["content"]) for c in choices[2:] if "content" in c["delta"]]
    assert texts == [(0, "he"), (1, "x")]
    reasons = [(c["index"], c["finish_reason"]) for c in choices if c["finish_reason"]]
    assert reasons == [(1, "length"), (0, "stop")]
    assert chunks[-1]["timings"] == {"queue_ms": 1, "compute_ms": 2}
    assert [("timings" in chunk) for chunk in chunks].count(True) == 1
    assert all("usage" not in chunk for chunk in chunks)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1


def test_usage_comes_with_a_last_chunk_of_its_own_when_asked_for() -> None:
    chunks = stream(with_usage=True)
    assert chunks[-1]["choices"] == []
    expected = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    assert chunks[-1]["usage"] == expected
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["timings"]
    assert chunks[-1]["seed"] == 1


def test_the_sizes_of_the_pictures_stand_once_in_the_usage() -> None:
    sizes = (PictureSize(84, 56, 6), PictureSize(28, 28, 1))
    shown = [{"width": 84, "height": 56, "tokens": 6}, {"width": 28, "height": 28, "tokens": 1}]
    options = {"include_usage": True, "continuous_usage_stats": True}
    asked = body("a", n=2, seed=1, stream=True, stream_options=options)
    requests = CODEC.decode_chat(asked)
    last = LastDelta((1,), 9, 1, "x", "length", sizes)
    reply = ChunkEncoder(asked, CALL, "float32", requests).whole(
        [answer(r, last) for r in requests]
    )
    assert reply["usage"]["prompt_images"] == shown
    encoder = ChunkEncoder(asked, CALL, "float32", requests)
    events = encoder.deltas(0, [ChatDelta((1,), 9, 1, "y")], dict)
    chunks = chunks_of(events + encoder.deltas(1, [last], dict) + encoder.deltas(0, [last], dict))
    assert chunks[-1]["usage"]["prompt_images"] == shown
    assert all("prompt_images" not in chunk["usage"] for chunk in chunks[:-1])


def test_usage_comes_with_every_chunk_when_asked_for() -> None:
    chunks = stream(with_usage=True, in_every_chunk=True)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == [0, 0, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("name", ["seed", "max_tokens", "top_k", "temperature", "top_p"])
def test_a_number_that_no_float_holds_is_the_callers_fault(name: str) -> None:
    for value in (int("9" * 999), -int("9" * 999)):
        with pytest.raises(InvalidRequest, match=name) as refused:
            v2(column("prompt", b"hi"), **{name: value})
        assert len(refused.value.message) < 200
