"""One piece of work in flight, and the way back to its caller. Knows nothing of what is inside work
and chunk.

The job is the only object that crosses the border between the event loop and the engine thread. The
engine thread calls `emit`, `finish` and `fail`; the loop reads `stream` and may `cancel`. Exactly
one of `finish` and `fail` takes effect: whatever comes after the first is ignored, so a job is
answered exactly once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Generic, TypeVar

from predictors.errors import Cancelled, ServingError
from predictors.observe import tracing
from predictors.serving.bell import Bell

W = TypeVar("W")
C = TypeVar("C")


class Job(Generic[W, C]):
    """A unit of admission: one prompt, one picture, one row.

    Times are `clock()` seconds (monotonic). `deadline` None means the caller will wait for ever.
    """

    def __init__(
        self,
        job_id: str,
        work: W,
        *,
        deadline: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id = job_id
        self.work = work
        self.deadline = deadline
        self.clock = clock
        self.exemplar = tracing.exemplar()
        """What histograms show beside its durations."""
        self.submitted_at = clock()
        self.admitted_at: float | None = None
        self.finished_at: float | None = None
        self.stages: list[tuple[str, float, float, dict[str, int]]] = []
        """What was done for it on the engine: name, start, end, facts."""
        self._lock = threading.Lock()
        self._chunks: list[C] = []
        self._error: ServingError | None = None
        self._done = False
        self._cancelled = False
        self._bell: Bell | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_waiting = False  # the reader has seen all there is and was not told of more
        self.ticket = 0
        """Order of acceptance, unique per host; set by the roster."""
        self.on_cancel: Callable[[Job[W, C]], None] | None = None
        """Called once, on the canceller's thread, when the caller leaves before the answer."""

    # -- read by the engine thread ---------------------------------------------------------------
    @property
    def cancelled(self) -> bool:
        """Whether the caller has left. Any thread."""
        return self._cancelled

    @property
    def done(self) -> bool:
        """Whether the job was answered. Any thread."""
        return self._done

    def is_late(self, now: float) -> bool:
        """Whether its deadline has passed at `now`."""
        return self.deadline is not None and now >= self.deadline

    # -- called by the engine thread -------------------------------------------------------------
    def note(self, stage: str, seconds: float, **facts: int) -> None:
        """A stage that took `seconds` is over now; to be called before the caller can know."""
        now = self.clock()
        self.stages.append((stage, now - seconds, now, facts))

    def emit(self, chunk: C) -> None:
        """Hand one chunk to the caller; ignored once the job is answered."""
        with self._lock:
            if self._done:
                return
            self._chunks.append(chunk)
            bell = self._due_bell()
        if bell is not None:
            bell.ring(self)

    def finish(self) -> None:
        """Answer the job: no more chunks will come."""
        self._end(None)

    def fail(self, error: ServingError) -> None:
        """Answer the job with a failure."""
        self._end(error)

    def _end(self, error: ServingError | None) -> None:
        with self._lock:
            if self._done:
                return
            self._done = True
            self._error = error
            self.finished_at = self.clock()
            self.on_cancel = None  # nothing is left to free, and the host need not be kept alive
            bell = self._due_bell()
        if bell is not None:
            bell.ring(self)

    def _due_bell(self) -> Bell | None:
        """The bell to be rung, if the reader waits; to be called with the lock."""
        if not self._is_waiting:
            return None
        self._is_waiting = False
        return self._bell

    def lose(self) -> None:
        """The reader's loop is closed: nobody is left to tell. Any thread."""
        self._cancelled = True

    # -- called by the caller's loop -------------------------------------------------------------
    def cancel(self) -> None:
        """The caller leaves: its place is free at once, its slot before the next step.

        Any thread, idempotent; nothing happens to a job that was answered.
        """
        with self._lock:
            if self._done or self._cancelled:
                return
            self._cancelled = True
            tell = self.on_cancel
        if tell is not None:  # outside the lock: the host takes its own
            tell(self)

    def wake(self) -> None:
        """The bell was rung: the reader looks again. Its loop only."""
        if self._waiter is not None and not self._waiter.done():  # done: the reader was cancelled
            self._waiter.set_result(None)

    async def batches(self) -> AsyncIterator[list[C]]:
        """Yield all chunks that came since the last look, never none; raise the failure if there
        is one. One reader per job.

        Leaving early does not cancel: the reader's owner does that (`Flight` does).
        """
        loop = asyncio.get_running_loop()
        self._bell = Bell.of(loop)
        while True:
            with self._lock:
                chunks, self._chunks = self._chunks, []
                done, error = self._done, self._error
                if not chunks and not done:
                    self._waiter = loop.create_future()
                    self._is_waiting = True
            if chunks:
                yield chunks
            if done:
                if error is not None:
                    raise error
                return
            if not chunks:
                await self._waiter  # type: ignore[misc]

    async def stream(self) -> AsyncIterator[C]:
        """The same, chunk by chunk."""
        async with aclosing(self.batches()) as batches:  # type: ignore[type-var]
            async for chunks in batches:
                for chunk in chunks:
                    yield chunk

    async def wait(self) -> list[C]:
        """All chunks, once the job is answered."""
        return [chunk async for chunk in self.stream()]

    def drain_unread(self) -> ServingError | None:
        """The failure, without a loop; None if the job was answered well or is still open."""
        return self._error if self._done else None

    def abandon(self) -> None:
        """Answer a job whose caller left before it was admitted."""
        self.fail(Cancelled("the caller left before the answer was ready"))
