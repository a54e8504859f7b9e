"""A row's chunks as the request path reads them: whole, in batches, and cut by a reader."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from predictors.errors import StepFailed
from predictors.serving.job import Job
from predictors.serving.submission import TOGETHER, Submission


class CountedJob(Job[Any, str]):
    takes = 0

    def take(self) -> list[str] | None:
        self.takes += 1
        return super().take()


class UntilStop:
    """A reader that ends the row behind the chunk "stop"."""

    may_end_early = True
    done = False

    def feed(self, chunk: str) -> list[str]:
        self.done = chunk == "stop"
        return [chunk]


async def turns() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def emit(job: CountedJob, *chunks: str) -> None:
    """Each in turns of the loop of its own."""
    for chunk in chunks:
        job.emit(chunk)
        await turns()


async def test_a_whole_answer_is_read_many_chunks_at_a_time_and_its_end_at_once() -> None:
    job = CountedJob("a", None)
    reading = asyncio.create_task(Submission(job, None).collect())
    await turns()
    chunks = [str(i) for i in range(3 * TOGETHER + 1)]
    await emit(job, *chunks)
    job.finish()
    assert await reading == chunks
    assert job.takes <= 2 * 4 + 2  # each time the chunks, and then that there are no more


async def test_a_reader_that_may_end_early_has_each_chunk_of_a_whole_answer_at_once() -> None:
    job = CountedJob("a", None)
    reading = asyncio.create_task(Submission(job, UntilStop()).collect())
    await turns()
    await emit(job, "a", "stop")
    assert reading.done()
    assert job.cancelled
    assert reading.result() == ["a", "stop"]


async def test_a_streamed_row_is_read_chunk_by_chunk() -> None:
    job, seen = CountedJob("a", None), []

    async def read() -> None:
        seen.extend([list(chunks) async for chunks in Submission(job, None).batches()])

    reading = asyncio.create_task(read())
    await turns()
    await emit(job, "a", "b")
    job.finish()
    await reading
    assert seen == [["a"], ["b"]]


async def test_a_failure_of_a_whole_answer_is_raised_at_once() -> None:
    job = CountedJob("a", None)
    reading = asyncio.create_task(Submission(job, None).collect())
    await turns()
    await emit(job, "a")
    job.fail(StepFailed("the engine raised"))
    with pytest.raises(StepFailed):
        await reading
