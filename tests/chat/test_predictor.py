"""The predictor with its engine thread: V2 rows, chat, streams, callers that disconnect."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from predictors.chat import inputs
from predictors.chat.predictor import ChatPredictor
from predictors.errors import DeadlineExceeded, InvalidRequest, PromptTooLong
from predictors.models.qwen2_5_vl.model import make_predictor
from predictors.protocol.call import Call
from predictors.protocol.openai.chat_body import ChatBody, read_chat_body
from predictors.protocol.openai.conversation import BodyMessage, PicturePart
from predictors.protocol.serves import ServesChat
from predictors.protocol.v2.values import Tensor, V2Request
from predictors.settings import ComputeSettings, QwenVLSettings, Settings
from tests.chat.room import Room, chat, png
from tests.fakes import PATIENCE_S

SETTINGS = Settings(
    compute=ComputeSettings(device="cpu"), qwen_vl=QwenVLSettings(slots=4, max_context=512)
)
CALL = Call({}, protocol="openai", request_id="test")
PICTURE = "data:image/png;base64," + base64.b64encode(png(1)).decode()


@pytest.fixture(scope="module")
def predictor(wild_checkpoint: Path) -> Iterator[ChatPredictor]:
    made = make_predictor("qwen-vl", wild_checkpoint, SETTINGS)
    assert not made.host.is_ready
    assert made.load()
    yield made
    made.stop()


def body(text: str = "say something", **fields: Any) -> ChatBody:
    parts = [
        {"type": "image_url", "image_url": {"url": PICTURE}},
        {"type": "text", "text": text},
    ]
    given = {"model": "qwen-vl", "messages": [{"role": "user", "content": parts}], "seed": 1}
    return read_chat_body({**given, "max_tokens": 12, "ignore_eos": True, **fields})


async def streamed(predictor: ChatPredictor, asked: ChatBody) -> list[dict[str, Any]]:
    events = b"".join([some async for some in predictor.chat_stream(asked, CALL)])
    return [orjson.loads(line[6:]) for line in events.split(b"\n\n")[:-1]]


def contents(chunks: list[dict[str, Any]], index: int) -> str:
    choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def used_slots(predictor: ChatPredictor) -> int:
    return len(predictor.host._engine.active)  # type: ignore[attr-defined]


async def next_turn(predictor: ChatPredictor) -> None:
    """Wait for a step of the engine: it evicts cancelled jobs before it admits the next."""
    await predictor.chat(body("turn", max_tokens=1), CALL)


def test_it_serves_chat(predictor: ChatPredictor) -> None:
    assert isinstance(predictor, ServesChat)
    assert [t["name"] for t in predictor.get_input_types()] == ["prompt", "image", "video"]
    assert len(predictor.get_output_types()) == 10


async def test_v2_and_chat_give_the_same_answer_and_rows_are_independent(
    predictor: ChatPredictor, wild: Room
) -> None:
    prompts = (b"say something", "größer?".encode(), b"third")
    tensors = (
        Tensor("prompt", "BYTES", (3,), prompts, text=True),
        Tensor("image", "BYTES", (3,), (png(1), png(2), png(3))),
    )
    parameters = {"max_tokens": 12, "temperature": 0.8, "seed": 1}
    response = await predictor.infer(V2Request("qwen-vl", "1", tensors, parameters), CALL)
    columns = {t.name: list(t.data) for t in response.outputs}
    asked = body(temperature=0.8, ignore_eos=False)
    reply = await predictor.chat(asked, CALL)
    assert reply["choices"][0]["message"]["content"].encode() == columns["text"][0]
    assert reply["usage"]["prompt_tokens"] == columns["prompt_tokens"][0]
    alone = [
        await predictor.infer(
            V2Request(
                "qwen-vl",
                "1",
                (
                    Tensor("prompt", "BYTES", (1,), (prompts[i],)),
                    Tensor("image", "BYTES", (1,), (png(i + 1),)),
                ),
                {**parameters, "seed": 1 + i},
            ),
            CALL,
        )
        for i in range(3)
    ]
    assert [next(iter(a.outputs[0].data)) for a in alone] == columns["text"]
    assert response.parameters["precision"] == "float32"
    assert isinstance(response.parameters["compute_ms"], int)


async def test_a_stream_is_the_whole_answer_in_pieces(predictor: ChatPredictor) -> None:
    asked = body(n=3, temperature=1.0)
    whole = await predictor.chat(asked, CALL)
    chunks = await streamed(predictor, asked)
    texts = [choice["message"]["content"] for choice in whole["choices"]]
    assert [contents(chunks, i) for i in range(3)] == texts
    assert len(set(texts)) == 3
    assert len(chunks) >= 9  # a role, a text and a reason for each, or more texts
    reasons = [c["finish_reason"] for chunk in chunks for c in chunk["choices"]]
    assert [r for r in reasons if r] == ["length"] * 3
    assert set(chunks[-1]["timings"]) == {"queue_ms", "compute_ms"}


async def test_a_stop_string_ends_answer_and_job(predictor: ChatPredictor) -> None:
    text = (await predictor.chat(body(max_tokens=30), CALL))["choices"][0]["message"]["content"]
    stop = text[6:9]
    stopped = body(max_tokens=200, stop=stop)
    reply = await predictor.chat(stopped, CALL)
    choice = reply["choices"][0]
    assert choice["message"]["content"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] <= 30
    chunks = await streamed(predictor, stopped)
    assert contents(chunks, 0) == text[: text.index(stop)]
    await next_turn(predictor)  # long before 200 tokens
    pool = predictor.host._engine._pages.pool  # type: ignore[attr-defined]
    assert pool.num_free == pool.num_pages


@pytest.mark.parametrize("n", [1, 3])
async def test_a_caller_that_leaves_a_stream_frees_slots_and_pages(
    predictor: ChatPredictor, n: int
) -> None:
    stream = predictor.chat_stream(body(n=n, max_tokens=400), CALL)
    async with aclosing(stream) as chunks:  # type: ignore[type-var]
        async for _ in chunks:
            break
    await next_turn(predictor)
    pool = predictor.host._engine._pages.pool  # type: ignore[attr-defined]
    assert pool.num_free == pool.num_pages


async def test_a_cancelled_call_frees_its_slots(
    predictor: ChatPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, are_running, has_left = predictor.host._engine, threading.Event(), threading.Event()
    step = engine.step

    def held(jobs: Sequence[Any]) -> None:
        """Both are there when their caller leaves, however fast the engine is."""
        if len(jobs) == 2:
            are_running.set()
            assert has_left.wait(PATIENCE_S)
        step(jobs)

    monkeypatch.setattr(engine, "step", held)
    task = asyncio.create_task(predictor.chat(body(n=2, max_tokens=400), CALL))
    assert await asyncio.to_thread(are_running.wait, PATIENCE_S)
    assert used_slots(predictor) == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    has_left.set()
    await next_turn(predictor)
    assert used_slots(predictor) == 0


async def test_a_refused_request_fails_before_the_first_chunk(
    predictor: ChatPredictor,
) -> None:
    with pytest.raises(InvalidRequest, match="1000 in the completion") as refused:
        await streamed(predictor, body(max_tokens=1000))
    assert refused.value.param == "max_tokens"
    broken = replace(body(), messages=(BodyMessage("user", (PicturePart(b"not a picture"),)),))
    with pytest.raises(InvalidRequest, match="image"):
        await predictor.chat(broken, CALL)


async def test_a_bad_row_is_named_and_no_other_row_starts(predictor: ChatPredictor) -> None:
    tensors = (
        Tensor("prompt", "BYTES", (2,), (b"a", b"b")),
        Tensor("image", "BYTES", (2,), (png(1), b"GIF89a")),
    )
    with pytest.raises(InvalidRequest, match=r"^row 1: "):
        await predictor.infer(V2Request("qwen-vl", "1", tensors), CALL)
    assert used_slots(predictor) == 0


async def test_usage_comes_last_when_asked_for(predictor: ChatPredictor) -> None:
    chunks = await streamed(predictor, body(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1]["choices"] == []
    prompt = predictor.prepare(chat(png(1), "say something")).num_prompt_tokens
    assert chunks[-1]["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 12,
        "total_tokens": prompt + 12,
        "prompt_images": [{"width": 56, "height": 56, "tokens": 4}],
    }


async def test_the_format_of_calls_is_made_off_the_event_loop(
    predictor: ChatPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    made = inputs.tools_format

    def watched(*args: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        return made(*args, **options)

    monkeypatch.setattr(inputs, "tools_format", watched)
    tools = [{"type": "function", "function": {"name": "f"}}]
    asked = body(tools=tools, tool_choice="required", max_tokens=40, ignore_eos=False)
    answer = await predictor.chat(asked, CALL)
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "f"
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


async def test_tools_beyond_the_context_are_refused_before_their_format_is_made(
    predictor: ChatPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "tools_format", None)
    function = {"name": "f", "description": "long " * 40_000}
    asked = body(tools=[{"type": "function", "function": function}], ignore_eos=False)
    with pytest.raises(PromptTooLong):
        await predictor.chat(asked, CALL)


async def test_a_short_prompt_is_assembled_on_the_event_loop_and_a_longer_one_is_not(
    predictor: ChatPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assemble, threads = inputs.ChatPreparer.assemble, []

    def noted(self: inputs.ChatPreparer, *given: Any) -> Any:
        threads.append(threading.current_thread())
        return assemble(self, *given)

    monkeypatch.setattr(inputs.ChatPreparer, "assemble", noted)
    short, long = chat("hello"), chat("hello " * 200)
    assert (short.is_short, long.is_short) == (True, False)
    made = [await predictor.prepare_row(each) for each in (short, long)]
    assert threads[0] is threading.current_thread()
    assert threads[1] is not threads[0]
    for work, asked in zip(made, (short, long), strict=True):
        assert work.tokens.equal(predictor.prepare(asked).tokens)


async def test_a_short_prompt_is_not_assembled_after_its_deadline(
    predictor: ChatPredictor,
) -> None:
    with pytest.raises(DeadlineExceeded, match="before this was prepared"):
        await predictor.prepare_row(chat("hello"), deadline=0.0)
