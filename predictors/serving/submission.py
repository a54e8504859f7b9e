"""`Submission`: a submitted row as the request path sees it, with its chunks and its times."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Generic, Protocol, TypeVar

from predictors.observe import tracing
from predictors.serving.job import Job

W = TypeVar("W")
C = TypeVar("C")


class Reader(Protocol[C]):
    """Transforms a job's chunks on the event loop before the caller gets them."""

    @property
    def done(self) -> bool:
        """True once the caller has all it asked for: the job is cancelled then."""

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

    async def chunks(self) -> AsyncIterator[C]:
        """The row's chunks; raises its failure. The job is cancelled however the iteration ends."""
        async with aclosing(self.batches()) as batches:  # type: ignore[type-var]
            async for chunks in batches:
                for chunk in chunks:
                    yield chunk

    async def batches(self) -> AsyncIterator[Sequence[C]]:
        """The row's chunks in non-empty batches: all that came since the previous read. Raises the
        row's failure; cancels the job however the iteration ends."""
        reader = self._reader
        try:
            async with aclosing(self._job.batches()) as batches:  # type: ignore[type-var]
                async for chunks in batches:
                    passed = self._read(chunks)
                    if passed:
                        yield passed
                    if reader is not None and reader.done:
                        return
        finally:
            self._job.cancel()

    def _read(self, chunks: Sequence[C]) -> Sequence[C]:
        if self._reader is None:
            self.last = chunks[-1]
            return chunks
        passed: list[C] = []
        for chunk in chunks:
            self.last = chunk
            passed += self._reader.feed(chunk)
            if self._reader.done:
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
