"""One job across threads and loops: streamed in order and answered once."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from predictors.errors import Cancelled, StepFailed
from predictors.serving.job import Job, LoopWaker, emit_all
from tests.fakes import PATIENCE_S, ScriptedClock, Task, answer, failure, read, stream


def job_of(name: str = "a", **keywords: object) -> Job[Task, str]:
    return Job("job", Task(name), **keywords)  # type: ignore[arg-type]


def test_chunks_emitted_before_the_reader_starts_are_not_lost() -> None:
    job = job_of()
    job.emit("1")
    job.emit("2")
    job.finish()
    assert answer(job) == ["1", "2"]


async def test_a_reader_gets_each_chunk_of_another_thread_at_once() -> None:
    job = job_of()
    seen = threading.Event()

    def engine() -> None:
        for i in range(50):
            job.emit(str(i))
            assert seen.wait(PATIENCE_S)  # the reader has the chunk before the next one
            seen.clear()
        job.finish()

    thread = threading.Thread(target=engine)
    thread.start()
    chunks = []
    async for chunk in stream(job):
        chunks.append(chunk)
        seen.set()
    thread.join()
    assert chunks == [str(i) for i in range(50)]


async def test_many_chunks_wake_the_reader_once_until_it_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    job = job_of()
    chunks = stream(job)
    first = asyncio.ensure_future(anext(chunks))
    await asyncio.sleep(0)  # the reader waits now
    calls = 0
    schedule = loop.call_soon_threadsafe

    def count(*args: object) -> object:
        nonlocal calls
        calls += 1
        return schedule(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_soon_threadsafe", count)
    for i in range(100):
        job.emit(str(i))
    job.finish()
    assert await first == "0"
    assert [chunk async for chunk in chunks] == [str(i) for i in range(1, 100)]
    assert calls == 1


def test_several_loops_in_several_threads_read_their_own_jobs() -> None:
    jobs = [job_of() for _ in range(6)]
    answers: list[list[str]] = [[] for _ in jobs]
    reading = threading.Barrier(len(jobs) + 1)

    def read_job(i: int) -> None:
        async def main() -> None:
            reader = asyncio.ensure_future(read(jobs[i]))
            await asyncio.sleep(0)
            reading.wait(PATIENCE_S)
            answers[i] = await asyncio.wait_for(reader, PATIENCE_S)

        asyncio.run(main())

    threads = [threading.Thread(target=read_job, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    reading.wait(PATIENCE_S)
    for i, job in enumerate(jobs):
        job.emit(f"for {i}")
        job.finish()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert answers == [[f"for {i}"] for i in range(len(jobs))]


def test_chunks_emitted_after_the_end_are_ignored() -> None:
    job = job_of()
    job.emit("in time")
    job.finish()
    job.emit("too late")
    assert answer(job) == ["in time"]


def test_only_the_first_answer_counts() -> None:
    finished, failed = job_of(), job_of()
    finished.finish()
    finished.fail(StepFailed("too late"))
    failed.fail(StepFailed("first"))
    failed.finish()
    failed.abandon()
    assert answer(finished) == []
    assert str(failure(failed)) == "first"


def test_chunks_before_a_failure_are_read_before_it() -> None:
    job = job_of()
    job.emit("1")
    job.fail(StepFailed("broken"))

    chunks = []

    async def read() -> None:
        async for chunk in stream(job):
            chunks.append(chunk)  # noqa: PERF401 - what came before the failure is kept

    with pytest.raises(StepFailed, match="broken"):
        asyncio.run(read())
    assert chunks == ["1"]


def test_emitting_to_a_closed_loop_cancels_the_job() -> None:
    job = job_of()

    async def look_once() -> None:
        reader = asyncio.ensure_future(read(job))
        await asyncio.sleep(0)
        reader.cancel()

    asyncio.run(look_once())
    job.emit("unheard")
    assert job.cancelled


def test_cancelling_calls_on_cancel_once() -> None:
    job, cancelled = job_of(), []
    job.on_cancel = cancelled.append
    job.cancel()
    job.cancel()
    assert cancelled == [job]
    assert job.cancelled


def test_cancelling_an_answered_job_does_nothing() -> None:
    job, cancelled = job_of(), []
    job.on_cancel = cancelled.append
    job.finish()
    job.cancel()
    assert cancelled == []
    assert not job.cancelled


def test_an_abandoned_job_fails_with_cancelled() -> None:
    job = job_of()
    job.abandon()
    assert isinstance(failure(job), Cancelled)


def test_times_are_read_from_the_clock_that_was_given() -> None:
    clock = ScriptedClock(10.0)
    job = job_of(deadline=12.0, clock=clock)
    assert job.submitted_at == 10.0
    assert not job.is_late(11.999)
    assert job.is_late(12.0)
    clock.advance(5)
    job.finish()
    assert job.finished_at == 15.0


def test_a_job_without_deadline_is_never_late() -> None:
    assert not job_of().is_late(float("inf"))


class Reader:
    def __init__(self, name: str, calls: list[str]) -> None:
        self.name = name
        self.calls = calls

    def wake(self) -> None:
        self.calls.append(f"{self.name} woke")

    def on_loop_closed(self) -> None:
        self.calls.append(f"{self.name} closed")


async def test_all_notified_readers_are_woken_in_order_by_one_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    scheduled: list[object] = []
    schedule = loop.call_soon_threadsafe

    def count(*args: object) -> object:
        scheduled.append(args)
        return schedule(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_soon_threadsafe", count)
    calls: list[str] = []
    waker = LoopWaker.of(loop)
    for name in "abc":
        waker.notify(Reader(name, calls))
    assert calls == []
    await asyncio.sleep(0)
    assert calls == ["a woke", "b woke", "c woke"]
    assert len(scheduled) == 1
    waker.notify(Reader("d", calls))
    await asyncio.sleep(0)
    assert calls[3:] == ["d woke"]
    assert len(scheduled) == 2


async def test_chunks_of_a_step_reach_their_readers_by_one_notification(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notified: list[tuple[Job[None, str], ...]] = []
    notify = LoopWaker.notify

    def count(waker: LoopWaker, *jobs: Any) -> None:
        notified.append(jobs)
        notify(waker, *jobs)

    monkeypatch.setattr(LoopWaker, "notify", count)
    jobs: list[Job[None, str]] = [Job(name, None) for name in "abc"]
    readers = [anext(stream(job)) for job in jobs[:2]]
    tasks = [asyncio.ensure_future(reader) for reader in readers]
    await asyncio.sleep(0)  # both wait now, and nobody reads the third
    jobs[2].finish()
    emit_all([(job, job.id) for job in jobs])
    assert notified == [(jobs[0], jobs[1])]
    assert await asyncio.gather(*tasks) == ["a", "b"]
    with pytest.raises(StopAsyncIteration):  # its chunk came too late
        await anext(stream(jobs[2]))


async def test_a_loop_has_one_waker() -> None:
    loop = asyncio.get_running_loop()
    assert LoopWaker.of(loop) is LoopWaker.of(loop)


async def waker_of_this_loop() -> LoopWaker:
    return LoopWaker.of(asyncio.get_running_loop())


def test_the_next_loop_of_a_thread_has_another_waker() -> None:
    first, second = asyncio.run(waker_of_this_loop()), asyncio.run(waker_of_this_loop())
    assert first is not second
    assert first.loop is not second.loop


def test_readers_of_a_closed_loop_are_called_back_at_once() -> None:
    calls: list[str] = []
    waker = asyncio.run(waker_of_this_loop())
    waker.notify(Reader("a", calls))
    waker.notify(Reader("b", calls))
    assert calls == ["a closed", "b closed"]


def test_a_reader_notified_as_the_loop_ended_is_called_back_with_the_next() -> None:
    calls: list[str] = []
    loop = asyncio.new_event_loop()
    waker = LoopWaker(loop)
    waker.notify(Reader("a", calls))  # the loop never runs again
    loop.close()
    waker.notify(Reader("b", calls))
    assert calls == ["a closed", "b closed"]
