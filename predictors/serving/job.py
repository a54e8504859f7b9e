"""A job: one piece of work in flight, and the way of its chunks back to the caller.

The job is the only object that the event loop and the engine thread share. The engine thread calls
`emit`, `finish` and `fail`; the loop calls `take` and may `cancel`. Only the first call of `finish`
or `fail` takes effect, so a job is answered exactly once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from predictors.errors import Cancelled, ServingError
from predictors.observe import tracing
from predictors.serving.accounts import ANYONE, Account, Caller

W = TypeVar("W")
C = TypeVar("C")


class Job(Generic[W, C]):
    """A unit of admission: one prompt, one picture, one row.

    Times are seconds of `clock` (monotonic). A `deadline` of None never passes. `cancelled`,
    `done` and `error` may be read on any thread.
    """

    def __init__(
        self,
        job_id: str,
        work: W,
        *,
        deadline: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        caller: Caller = ANYONE,
    ) -> None:
        self.id = job_id
        self.work = work
        self.deadline = deadline
        self.caller = caller
        self.priority = caller.level if caller.priority else 0
        self.account = Account(caller.name, caller.weight)
        """Its caller's account at this engine. `JobTable` replaces it with the one that all jobs
        of the caller share."""
        self.cost: float = getattr(work, "cost", 1.0)
        """Expected time on the device, in a unit of the engine's; 1 if the work has no `cost`.
        Constant, since sums that it was added to must subtract the same."""
        self.spent_cost: float = self.cost
        """The cost of the work that was really done. An engine may correct it when the job has
        ended, before the rate is learned from it."""
        self.least_cost: float = getattr(work, "least_cost", self.cost)
        """The cost if it ends as early as it can: of a chat, after one token."""
        self.cost_kind: str = getattr(work, "cost_kind", "")
        """Works of one kind take equal time for equal cost."""
        self.used_s = 0.0
        """Engine seconds charged so far. Each second of a step is charged once: a job among n that
        share a step gets its part."""
        self.clock = clock
        self.exemplar = tracing.exemplar()
        """Labels of the exemplars that histograms show beside the job's durations."""
        self.submitted_at = clock()
        self.admitted_at: float | None = None
        self.finished_at: float | None = None
        self.stages: list[tuple[str, float, float, dict[str, int]]] = []
        """Its stages on the engine: name, start, end, span attributes."""
        self._lock = threading.Lock()
        self._chunks: list[C] = []
        self._error: ServingError | None = None
        self._done = False
        self._cancelled = False
        self._loop_waker: LoopWaker | None = None
        self.wake: Callable[[], None] = lambda: None
        """Tells the reader that there is news. Its loop only; set by `attach`."""
        self._least = 1  # chunks that the reader is told of
        self._is_waiting = False  # the reader was not told of any chunk that it has not taken
        self.arrival_number = 0
        """Order of acceptance, unique per host; set by `JobTable`."""
        self.on_cancel: Callable[[Job[W, C]], None] | None = None
        """Called once, on the thread of `cancel`, when the caller leaves before the answer."""

    # -- read by the engine thread ---------------------------------------------------------------
    @property
    def cancelled(self) -> bool:
        return self._cancelled

    @property
    def done(self) -> bool:
        return self._done

    @property
    def error(self) -> ServingError | None:
        """None if the job succeeded or is not answered yet."""
        return self._error

    def is_late(self, now: float) -> bool:
        return self.deadline is not None and now >= self.deadline

    # -- called by the engine thread -------------------------------------------------------------
    def add_stage(self, name: str, seconds: float, **attributes: int) -> None:
        """Record a stage of `seconds` that ends now. Call it before the answer is emitted."""
        now = self.clock()
        self.stages.append((name, now - seconds, now, attributes))

    def emit(self, chunk: C) -> None:
        """Pass one chunk to the caller; ignored once the job is answered."""
        waker = self.put(chunk)
        if waker is not None:
            waker.notify(self)

    def put(self, chunk: C) -> LoopWaker | None:
        """As `emit`, but the returned waker must still be told to `notify` the job. None: its
        reader does not wait."""
        with self._lock:
            if self._done:
                return None
            self._chunks.append(chunk)
            if not self._is_waiting or len(self._chunks) < self._least:
                return None
            self._is_waiting = False
            return self._loop_waker

    def finish(self) -> None:
        """Answer the job: no more chunks will come."""
        self._end(None)

    def fail(self, error: ServingError) -> None:
        self._end(error)

    def abandon(self) -> None:
        """Answer a job whose caller has left."""
        self.fail(Cancelled("the caller left before the answer was ready"))

    def _end(self, error: ServingError | None) -> None:
        with self._lock:
            if self._done:
                return
            self._error = error  # first: a reader without the lock looks at `done` before it
            self._done = True
            self.finished_at = self.clock()
            self.on_cancel = None  # a reference that would keep the host alive
            waker = self._loop_waker if self._is_waiting else None
        if waker is not None:
            waker.notify(self)

    # -- called by the caller's loop -------------------------------------------------------------
    def cancel(self) -> None:
        """The caller leaves: its place is free at once, its slot before the next step.

        Any thread, idempotent; does nothing to a job that was answered.
        """
        with self._lock:
            if self._done or self._cancelled:
                return
            self._cancelled = True
            on_cancel = self.on_cancel
        if on_cancel is not None:  # outside the lock: the job table takes its own
            on_cancel(self)

    def attach(self, on_news: Callable[[], None], at_least: int = 1) -> None:
        """Have `on_news` called on the running loop, once after each `take`, when there are
        `at_least` so many chunks or the last ones to take. One reader per job, before it takes."""
        self._loop_waker, self._least = LoopWaker.of(asyncio.get_running_loop()), at_least
        self.wake = on_news

    def detach(self) -> None:
        """End what `attach` began: the job refers to its reader no more. Its loop only."""
        self.wake = lambda: None

    def take(self) -> list[C] | None:
        """All chunks since the last call, an empty list if there are none yet, None after the last.
        Raises the job's failure after the last chunk.

        A reader that stops taking does not cancel the job: the reader's owner does.
        """
        with self._lock:
            chunks, self._chunks = self._chunks, []
            is_over = self._done
            self._is_waiting = not is_over
        if chunks or not is_over:
            return chunks
        if self._error is not None:
            raise self._error
        return None

    def on_loop_closed(self) -> None:
        """The reader's loop is closed: the caller has left. Any thread."""
        self._cancelled = True


def emit_all(chunks: Sequence[tuple[Job[W, C], C]]) -> None:
    """As `emit` of each chunk to its job, but readers of one loop are woken together, after the
    last chunk."""
    told: dict[LoopWaker, list[Job[W, C]]] = {}
    for job, chunk in chunks:
        if (waker := job.put(chunk)) is not None:
            told.setdefault(waker, []).append(job)
    for waker, jobs in told.items():
        waker.notify(*jobs)


class LoopReader(Protocol):
    """A reader that waits on an event loop."""

    def wake(self) -> None:
        """There is news. Called on the loop."""

    def on_loop_closed(self) -> None:
        """The loop is closed and runs no reader any more. Called on the thread of `notify`."""


class LoopWaker:
    """Wakes the readers of one loop. `notify` may be called on any thread, and calls the loop once
    for all readers that it has not woken yet."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._lock = threading.Lock()
        self._notified: list[LoopReader] = []

    @staticmethod
    def of(loop: asyncio.AbstractEventLoop) -> LoopWaker:
        """The waker of `loop`, which must be the running loop of this thread."""
        waker: LoopWaker | None = getattr(_of_thread, "waker", None)
        if waker is None or waker.loop is not loop:
            waker = _of_thread.waker = LoopWaker(loop)
        return waker

    def notify(self, *readers: LoopReader) -> None:
        """Have each one's `wake` called on the loop, soon and in the order of the notifications."""
        with self._lock:
            was_called = bool(self._notified)
            self._notified += readers
            if was_called and not self.loop.is_closed():
                return  # the loop has not run yet
        try:
            self.loop.call_soon_threadsafe(self._wake_all)
        except RuntimeError:  # the loop is closed, which must not end the engine thread
            for reader in self._pop_all():
                reader.on_loop_closed()

    def _wake_all(self) -> None:
        for reader in self._pop_all():
            reader.wake()

    def _pop_all(self) -> list[LoopReader]:
        with self._lock:
            notified, self._notified = self._notified, []
        return notified


_of_thread = threading.local()  # a thread runs one loop at a time
