"""All who were accepted and not yet answered: who waits, who runs, whose time is up. One lock.

Whoever is accepted here leaves here, exactly once, and is counted then. Callers (`accept`,
cancelled jobs), the watch (`expire`) and the engine thread (`walk`, `seat`, `leave`) meet in this
class and nowhere else. No lock is held while an engine works. Knows no engine; never walks over all
that wait.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from prometheus_client import Gauge

from predictors import metrics
from predictors.errors import DeadlineExceeded, InvalidRequest, Overloaded, ServingError
from predictors.serving.job import Job
from predictors.serving.pace import Pace
from predictors.serving.queue import AdmissionQueue, Walk
from predictors.settings import QueueSettings

W = TypeVar("W")
C = TypeVar("C")

STALE_ENTRIES = 64  # of the deadline heap that may stay beside the live ones


class Roster(Generic[W, C]):
    """Waiting and running jobs of one engine. All methods: any thread, never long.

    `gate()` returns why nobody is accepted now, or None; it is asked under the lock, so that a
    state which is changed before the lock is taken holds for everybody who comes after.
    """

    def __init__(
        self,
        model: str,
        slots: int,
        settings: QueueSettings,
        clock: Callable[[], float],
        gate: Callable[[], ServingError | None],
    ) -> None:
        self.slots = slots
        self._model = model
        self._capacity = settings.capacity
        self._clock = clock
        self._gate = gate
        self._queue: AdmissionQueue[W, C] = AdmissionQueue(settings)
        self._running: dict[int, Job[W, C]] = {}
        self._deadlines: list[tuple[float, int]] = []  # heap; entries of those who left are stale
        self._pace = Pace()
        self._ticket = 0
        self._reserved = 0
        self._busy_since: float | None = None
        self._has_changed = False
        self._is_closed = False
        self._lock = threading.Lock()
        self._change = threading.Condition(self._lock)  # the engine thread waits for it
        self._due = threading.Condition(self._lock)  # the watch waits for it
        self.removed = threading.Condition(self._lock)
        """Notified when a job was answered or removed."""
        self._outcomes = {r: metrics.jobs_total.labels(model, r) for r in metrics.REASONS}
        self._queue_seconds = metrics.queue_seconds.labels(model)
        # read when somebody scrapes, instead of written whenever somebody moves
        self._gauges: tuple[tuple[Gauge, Callable[[], float]], ...] = (
            (metrics.requests_waiting.labels(model), lambda: self.waiting),
            (metrics.requests_running.labels(model), lambda: len(self._running)),
            (metrics.queue_oldest_seconds.labels(model), self.oldest_age_s),
        )
        for gauge, read in self._gauges:
            gauge.set_function(read)

    # -- callers ---------------------------------------------------------------------------------
    def check(self, rows: int) -> None:
        """Raise what `accept` would raise for so many rows now."""
        with self._lock:
            self._check(rows)

    def reserve(self, rows: int) -> None:
        """Keep places for so many rows while they are prepared, or raise what `accept` would;
        `release` must follow, after `accept`."""
        with self._lock:
            self._check(rows)
            self._reserved += rows

    def release(self, rows: int) -> None:
        """Keep them no longer."""
        with self._lock:
            self._reserved -= rows

    def accept(self, jobs: Sequence[Job[W, C]], *, is_reserved: bool = False) -> None:
        """Let all of them wait, or raise and let none. Who has reserved places finds them free.

        Raises what the gate says, `InvalidRequest` for more rows than could ever wait,
        `DeadlineExceeded` for jobs that come too late, `Overloaded` when there is no place for all.
        """
        with self._lock:
            self._check(len(jobs), is_reserved=is_reserved)
            now = self._clock()
            if any(job.is_late(now) for job in jobs):
                late = DeadlineExceeded("the deadline had passed on arrival")
                raise self._refused(late, len(jobs))
            if self._busy_since is None:
                self._busy_since = now
            leave = self._cancelled
            earliest = self._deadlines[0] if self._deadlines else None
            for job in jobs:
                self._ticket += 1
                job.ticket = self._ticket
                job.on_cancel = leave
                if job.deadline is not None:
                    heapq.heappush(self._deadlines, (job.deadline, job.ticket))
            self._queue.put(jobs)
            if self._deadlines and self._deadlines[0] != earliest:
                self._due.notify_all()
            self._note_change()

    def _check(self, rows: int, *, is_reserved: bool = False) -> None:
        refusal = self._gate()
        if refusal is not None:
            raise self._refused(refusal, rows)
        if not 0 < rows <= self._capacity:
            message = f"a request may have 1 to {self._capacity} rows, not {rows}; split it"
            raise self._refused(InvalidRequest(message), rows)
        if is_reserved:
            return
        room = self._queue.room(self._free_slots)
        if rows > room - self._reserved:
            waiting = len(self._queue) + self._reserved
            retry_after_s = self._pace.retry_after_s(waiting)
            # free slots are places too, until the engine turns somebody away: then more may wait
            places = max(waiting, len(self._queue) + room)
            taken = f"{waiting} of {places} places are taken"
            message = f"the queue is full: {taken}, {rows} needed; try again later"
            raise self._refused(Overloaded(message, retry_after_s=retry_after_s), rows)

    def _refused(self, error: ServingError, rows: int) -> ServingError:
        metrics.admission_rejected_total.labels(self._model, error.reason).inc(rows)
        return error

    def _cancelled(self, job: Job[W, C]) -> None:
        with self._lock:
            if self._queue.pop(job.ticket) is not None:
                job.abandon()
                self._leave(job)
            self._note_change()  # one that runs is evicted by the engine thread

    # -- time ------------------------------------------------------------------------------------
    def expire(self, now: float) -> None:
        """Answer whoever is late: who waits leaves, who runs is evicted after this step."""
        with self._lock:
            while self._deadlines and self._deadlines[0][0] <= now:
                _, ticket = heapq.heappop(self._deadlines)
                waiting, running = self._queue.pop(ticket), self._running.get(ticket)
                if waiting is not None:
                    waiting.fail(DeadlineExceeded("the deadline passed before a slot was free"))
                    self._leave(waiting)
                elif running is not None:
                    running.fail(DeadlineExceeded("the deadline passed before it was done"))
                    self.removed.notify_all()
                    self._note_change()

    def wait_for_deadline(self) -> bool:
        """Block until somebody's time is up; False once the roster is closed. For the watch."""
        with self._lock:
            while not self._is_closed:
                left_s = self._deadlines[0][0] - self._clock() if self._deadlines else None
                if left_s is not None and left_s <= 0:
                    return True
                self._due.wait(None if left_s is None else min(left_s, threading.TIMEOUT_MAX))
            return False

    # -- the engine thread -----------------------------------------------------------------------
    def walk(self, now: float) -> Walk[W, C]:
        """Whom to offer to the engine, see `AdmissionQueue.walk`; to be followed by `end_walk`."""
        with self._lock:
            return self._queue.walk(self._free_slots, now)

    def end_walk(self, walk: Walk[W, C]) -> None:
        """The pass is over: what was refused says whether free slots count as places."""
        with self._lock:
            self._queue.end_walk(walk)

    def seat(self, job: Job[W, C], now: float) -> bool:
        """From waiting to running; False for one that has left meanwhile: take its slot back."""
        with self._lock:
            if self._queue.pop(job.ticket) is None:
                return False
            job.admitted_at = now
            self._queue_seconds.observe(max(0.0, now - job.submitted_at), job.exemplar)
            self._running[job.ticket] = job
            return True

    def leave(self, job: Job[W, C]) -> None:
        """A job that was answered and holds nothing any more goes, whether it ran or waited."""
        with self._lock:
            ran = self._running.pop(job.ticket, None)
            if ran is not None or self._queue.pop(job.ticket) is not None:
                self._leave(job)

    def _leave(self, job: Job[W, C]) -> None:
        error = job.drain_unread()
        reason = error.reason if error else "ok"
        self._outcomes.get(reason, self._outcomes["internal"]).inc()
        now = self._clock()
        if job.admitted_at is None:
            self._queue_seconds.observe(max(0.0, now - job.submitted_at), job.exemplar)
        elif error is None:
            self._pace.note((job.finished_at or now) - job.admitted_at, len(self._running) + 1)
        self.removed.notify_all()
        if self.open_jobs == 0:
            self._busy_since = None
        if len(self._deadlines) > 2 * self.open_jobs + STALE_ENTRIES:
            self._forget_stale()

    def _forget_stale(self) -> None:
        # at least half of the entries go, and each is dropped once: constant per job, amortised
        live = [e for e in self._deadlines if e[1] in self._running or self._queue.has(e[1])]
        self._deadlines = live
        heapq.heapify(self._deadlines)

    def wait_for_change(self) -> None:
        """Block until somebody has come, or left, since the last call. For the engine thread."""
        with self._lock:
            self._change.wait_for(lambda: self._has_changed)
            self._has_changed = False

    # -- the end ---------------------------------------------------------------------------------
    def fail_all(self, make_error: Callable[[], ServingError]) -> None:
        """Answer everybody. Who waits leaves at once, who runs after eviction."""
        with self._lock:
            for job in self._queue.clear():
                job.fail(make_error())
                self._leave(job)
            for job in self._running.values():
                job.fail(make_error())
            self.removed.notify_all()
            self._note_change()

    def dismiss(self) -> None:
        """Who runs was answered and leaves, whatever a lost engine still holds."""
        for job in self.running:
            self.leave(job)

    def wait_answered(self, timeout_s: float) -> bool:
        """Block until every job was answered; False when `timeout_s` is over first.

        Jobs that were answered from outside may still hold a slot: an engine that is stuck inside
        a step frees none, and waiting for it would be in vain.
        """
        with self.removed:
            return self.removed.wait_for(self._is_answered, min(timeout_s, threading.TIMEOUT_MAX))

    def _is_answered(self) -> bool:
        return not len(self._queue) and all(job.done for job in self._running.values())

    def wake(self) -> None:
        """Let whoever waits for time or change look again: the clock jumped, the host stops."""
        with self._lock:
            self._due.notify_all()
            self._note_change()

    def close(self) -> None:
        """Let the watch go."""
        self._is_closed = True
        for gauge, _ in self._gauges:
            gauge.set_function(lambda: 0.0)  # and lets go of this roster, its host and the engine
        self.wake()

    # -- for everybody to see --------------------------------------------------------------------
    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        return len(self._queue)

    @property
    def open_jobs(self) -> int:
        """Jobs that wait or hold a slot."""
        return len(self._queue) + len(self._running)

    @property
    def running(self) -> list[Job[W, C]]:
        """Jobs that hold a slot, in order of admission."""
        with self._lock:
            return list(self._running.values())

    def describe(self) -> dict[str, object]:
        """Who runs (id, age, seconds in the slot) and how many wait, as JSON can carry it."""
        running, now = self.running, self._clock()
        return {
            "running": [
                {
                    "id": job.id,
                    "age_s": round(now - job.submitted_at, 3),
                    "slot_s": round(now - (job.admitted_at or now), 3),
                }
                for job in running
            ],
            "queued": self.waiting,
            "queue_capacity": self._capacity,
            "queue_oldest_s": round(self.oldest_age_s(), 3),
            "slots": self.slots,
        }

    def has_free_slot(self) -> bool:
        """Whether the engine could have one more job by number."""
        return self._free_slots > 0

    @property
    def busy_since(self) -> float | None:
        """When the present stretch of work began; None while there is none."""
        return self._busy_since

    def oldest_age_s(self) -> float:
        """Seconds that the head has been waiting; 0 for an empty queue."""
        with self._lock:
            head = self._queue.head
        return 0.0 if head is None else max(0.0, self._clock() - head.submitted_at)

    @property
    def _free_slots(self) -> int:
        return max(0, self.slots - len(self._running))

    def _note_change(self) -> None:
        self._has_changed = True
        self._change.notify_all()
