"""However emits and reads interleave, a streamed chat says the same and counts the same."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from predictors.base import Submission
from predictors.chat.chunks import ChunkEncoder
from predictors.chat.detokenize import AnswerReader
from predictors.chat.request import ChatDelta, ChatRequest, Sampling
from predictors.protocol.call import Call
from predictors.protocol.openai.chat_body import ChatBody, StreamOptions
from predictors.serving.job import Job

PROMPT_TOKENS = 7
CALL = Call({}, protocol="openai", request_id="abc")
REQUEST = ChatRequest((), Sampling(), seed=1)
LETTERS = "größer als 🟥, kleiner als 🟦".encode()


class Bytes:
    """A vocabulary in which a token is a byte."""

    def bytes_of(self, token: int) -> bytes:
        return bytes([token])


def emit(job: Job[None, ChatDelta], tokens: Sequence[int], at: int) -> None:
    """Token `at`; the last one ends the answer."""
    is_last = at == len(tokens) - 1
    reason = "length" if is_last else None
    job.emit(ChatDelta((tokens[at],), PROMPT_TOKENS, at + 1, finish_reason=reason))
    if is_last:
        job.finish()


async def streamed(tokens: Sequence[int], bursts: Sequence[int], every: bool) -> list[bytes]:
    """The writes of an answer that comes in `bursts`: so many tokens, then a turn of the loop.
    The rest comes at once.
    """
    job: Job[None, ChatDelta] = Job("a", None)
    submission = Submission(job, AnswerReader(Bytes(), ()))  # type: ignore[arg-type]
    options = StreamOptions(include_usage=True, continuous_usage_stats=every)
    body = ChatBody("m", (), stream=True, stream_options=options)
    encoder = ChunkEncoder(body, CALL, "none", [REQUEST])
    written: list[bytes] = []

    async def read() -> None:
        async with aclosing(submission.batches()) as batches:  # type: ignore[type-var]
            written.extend([encoder.deltas(0, d, lambda: {"queue_ms": 1}) async for d in batches])

    reading = asyncio.create_task(read())
    made = 0
    for burst in bursts:
        for at in range(made, min(made + burst, len(tokens))):
            emit(job, tokens, at)
        made = min(made + burst, len(tokens))
        for _ in range(3):  # the waker, the reader's future, the reader
            await asyncio.sleep(0)
    for at in range(made, len(tokens)):
        emit(job, tokens, at)
    await reading
    return written


def chunks_of(written: Sequence[bytes]) -> list[dict[str, Any]]:
    return [orjson.loads(line[6:]) for line in b"".join(written).split(b"\n\n")[:-1]]


def texts(chunks: Sequence[dict[str, Any]]) -> list[str]:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return [choice["delta"]["content"] for choice in choices if "content" in choice["delta"]]


@given(
    st.binary(max_size=60).map(lambda extra: LETTERS + bytes(b & 0x7F for b in extra)),
    st.lists(st.integers(0, 9), max_size=40),
    st.booleans(),
)
def test_any_interleaving_of_emits_and_reads_gives_the_same_text_and_counts(
    tokens: bytes, bursts: list[int], every: bool
) -> None:
    chunks = chunks_of(asyncio.run(streamed(tokens, bursts, every)))
    assert "".join(texts(chunks)).encode() == tokens
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert [reason for reason in reasons if reason] == ["length"]
    count = len(tokens)
    assert chunks[-1]["usage"] == {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": count,
        "total_tokens": PROMPT_TOKENS + count,
    }
    if every:
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts)


def test_tokens_between_two_reads_are_written_as_one_event() -> None:
    run = partial(streamed, b"abcdefgh", every=False)
    one_by_one = asyncio.run(run([1] * 8))
    assert texts(chunks_of(one_by_one)) == list("abcdefgh")  # nothing is held back for company
    assert len(one_by_one) == 8
    in_bursts = asyncio.run(run([3, 4]))
    assert texts(chunks_of(in_bursts)) == ["abc", "defg", "h"]
    assert len(in_bursts) == 3
