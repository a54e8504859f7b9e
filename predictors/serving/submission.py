"""`Submission`: a submitted row as the request path sees it, with its chunks and its times."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Generic, Protocol, TypeVar

from predictors.observe import tracing
from predictors.serving.job import Job

TOGETHER = 32
"""Chunks of an answer that is not streamed, read at a time: some 0.1 ms of the event loop."""

W = TypeVar("W")
C = TypeVar("C")


class Reader(Protocol[C]):
    """Transforms a job's chunks on the event loop before the caller gets them."""

    @property
    def done(self) -> bool:
        """True once the caller has all it asked for: the job is cancelled then."""

    @property
    def may_end_early(self) -> bool:
        """`done` may become true before the engine ends the job."""

    def feed(self, chunk: C) -> Sequence[C]:
        """The chunks to pass on for this one: none, one or several."""


class Submission(Generic[W, C]):
    """A job and the reader of its chunks. Event loop."""

    def __init__(self, job: Job[W, C], reader: Reader[C] | None) -> None:
        self._job = job
        self._reader = reader
        self.last: C | None = None
        """The chunk that the caller got last."""

    @property
    def work(self) -> W:
        return self._job.work

    async def collect(self) -> list[C]:
        """All chunks of the row, once it is answered; raises its failure. The job is cancelled
        however this ends."""
        reader, found = self._reader, list[C]()
        at_least = 1 if reader is not None and reader.may_end_early else TOGETHER
        async for chunks in self.batches(at_least):
            found += chunks
        return found

    async def chunks(self) -> AsyncIterator[C]:
        """The row's chunks; raises its failure. The job is cancelled however the iteration ends."""
        async with aclosing(self.batches()) as batches:  # type: ignore[type-var]
            async for chunks in batches:
                for chunk in chunks:
                    yield chunk

    async def batches(self, at_least: int = 1) -> AsyncIterator[Sequence[C]]:
        """The row's chunks in non-empty batches: all that came since the previous read, once there
        are `at_least` so many or the last ones. Raises the row's failure; cancels the job however
        the iteration ends."""
        news = asyncio.Event()
        self._job.attach(news.set, at_least)
        try:
            while (chunks := self.take()) is not None:
                if chunks:
                    yield chunks
                else:
                    await news.wait()
                    news.clear()
        finally:
            self.cancel()

    def attach(self, on_news: Callable[[], None]) -> None:
        """As `Job.attach`."""
        self._job.attach(on_news)

    def detach(self) -> None:
        """As `Job.detach`."""
        self._job.detach()

    def take(self) -> Sequence[C] | None:
        """As `Job.take`, what the reader passes on. None also once the reader has all it asked for:
        the job is cancelled then."""
        reader = self._reader
        while reader is None or not reader.done:
            chunks = self._job.take()
            if not chunks:
                return chunks
            if reader is None:
                self.last = chunks[-1]
                return chunks
            if passed := self._read(chunks, reader):
                return passed
        self.cancel()
        return None

    @property
    def is_over(self) -> bool:
        """No more chunks will come behind those that `take` has not given yet."""
        return self._job.done or (self._reader is not None and self._reader.done)

    def _read(self, chunks: Sequence[C], reader: Reader[C]) -> Sequence[C]:
        passed: list[C] = []
        for chunk in chunks:
            self.last = chunk
            passed += reader.feed(chunk)
            if reader.done:
                break
        return passed

    def cancel(self) -> None:
        """Free the row's slot before the next step; no effect on a row that is answered."""
        self._job.cancel()

    @property
    def queue_ms(self) -> int:
        """Milliseconds from submission to a slot (else to the end, or to now), rounded up."""
        job = self._job
        until = job.finished_at if job.admitted_at is None else job.admitted_at
        return _ceil_ms((job.clock() if until is None else until) - job.submitted_at)

    @property
    def compute_ms(self) -> int:
        """Milliseconds from the slot to the answer (or to now), rounded up; 0 before admission."""
        job = self._job
        if job.admitted_at is None:
            return 0
        until = job.clock() if job.finished_at is None else job.finished_at
        return _ceil_ms(until - job.admitted_at)

    @property
    def used_s(self) -> float:
        """Engine seconds charged for the row so far."""
        return self._job.used_s

    def add_spans(self, trace: tracing.Trace, attributes: Mapping[str, int | str]) -> None:
        """Add the spans `queue` and `engine`; `attributes` and the stages belong to the latter."""
        job = self._job
        until = job.clock() if job.finished_at is None else job.finished_at
        admitted = until if job.admitted_at is None else job.admitted_at
        trace.add("queue", job.submitted_at, admitted)
        if job.admitted_at is not None:
            engine = trace.add("engine", admitted, until, {"job": job.id, **attributes})
            for name, start, end, stage_attributes in tuple(job.stages):
                trace.add(name, start, end, stage_attributes, below=engine)


def _ceil_ms(seconds: float) -> int:
    return max(0, math.ceil(seconds * 1000))
