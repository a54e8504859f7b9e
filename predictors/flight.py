"""One submitted row as its caller sees it: what comes back, and afterwards what it took. Knows no
protocol, no model and not who asked.
"""

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
    """Sees a job's chunks on the caller's side before the caller does."""

    @property
    def done(self) -> bool:
        """Whether the caller has all it asked for, so that the job can be cancelled."""
        ...

    def feed(self, chunk: C) -> Sequence[C]:
        """What the caller gets for this chunk: none, one or several."""
        ...


class Flight(Generic[W, C]):
    """One submitted row as its caller sees it."""

    def __init__(self, job: Job[W, C], reader: Reader[C] | None) -> None:
        self._job = job
        self._reader = reader
        self._last: C | None = None

    @property
    def work(self) -> W:
        """What is computed."""
        return self._job.work

    def trace(self, trace: tracing.Trace, facts: Mapping[str, int | str]) -> None:
        """Write down its spans: the queue, the engine and what was done there."""
        job = self._job
        until = job.clock() if job.finished_at is None else job.finished_at
        admitted = until if job.admitted_at is None else job.admitted_at
        trace.add("queue", job.submitted_at, admitted)
        if job.admitted_at is not None:
            engine = trace.add("engine", admitted, until, {"job": job.id, **facts})
            for name, start, end, told in tuple(job.stages):
                trace.add(name, start, end, told, below=engine)

    @property
    def last(self) -> C | None:
        """The chunk that the caller got last."""
        return self._last

    async def chunks(self) -> AsyncIterator[C]:
        """The row's chunks; raises its failure. The job is cancelled however the iteration ends."""
        async with aclosing(self.batches()) as batches:  # type: ignore[type-var]
            async for chunks in batches:
                for chunk in chunks:
                    yield chunk

    async def batches(self) -> AsyncIterator[Sequence[C]]:
        """The same, all that came since the last look at once, never none: who reads slowly gets
        more at a time, and nothing is asked twice for it.
        """
        reader = self._reader
        try:
            async with aclosing(self._job.batches()) as batches:  # type: ignore[type-var]
                async for chunks in batches:
                    seen = self._read(chunks)
                    if seen:
                        yield seen
                    if reader is not None and reader.done:
                        return
        finally:
            self._job.cancel()

    def _read(self, chunks: Sequence[C]) -> Sequence[C]:
        if self._reader is None:
            self._last = chunks[-1]
            return chunks
        seen: list[C] = []
        for chunk in chunks:
            self._last = chunk
            seen += self._reader.feed(chunk)
            if self._reader.done:
                break
        return seen

    def cancel(self) -> None:
        """The caller leaves; the slot is free before the next step."""
        self._job.cancel()

    @property
    def queue_ms(self) -> int:
        """Milliseconds from submission to a slot (or to its end without one, or to now), rounded
        up.
        """
        job = self._job
        until = job.finished_at if job.admitted_at is None else job.admitted_at
        return _ceil_ms((job.clock() if until is None else until) - job.submitted_at)

    @property
    def compute_ms(self) -> int:
        """Milliseconds from the slot to the answer (or to now), rounded up; 0 before admission."""
        job = self._job
        if job.admitted_at is None:
            return 0
        return _ceil_ms(
            (job.finished_at if job.finished_at is not None else job.clock()) - job.admitted_at
        )


def merged(rows: Sequence[Mapping[str, int | str]]) -> dict[str, object]:
    """One value where all rows agree, else a list with one for each."""
    if len(rows) == 1:
        return dict(rows[0])
    columns = {name: [row.get(name) for row in rows] for name in rows[0]}
    return {name: x if len(set(x)) > 1 else x[0] for name, x in columns.items()}


def _ceil_ms(seconds: float) -> int:
    return max(0, math.ceil(seconds * 1000))
