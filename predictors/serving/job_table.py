"""The table of all accepted jobs that have not left: waiting, running, and their deadlines.

Callers (`accept`, cancelled jobs), the watch thread (`expire`) and the engine thread
(`start_pass`, `start_running`, `remove`) share this table and nothing else. One lock guards it, and
no lock is held while an engine works. Every accepted job is removed and counted exactly once; no
operation visits all waiting jobs but `fail_all`.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from prometheus_client import Gauge

from predictors import metrics
from predictors.errors import DeadlineExceeded, InvalidRequest, Overloaded, ServingError
from predictors.serving.accounts import Accounts
from predictors.serving.job import Job
from predictors.serving.queue import AdmissionPass, AdmissionQueue, DepartureRate
from predictors.settings import QueueSettings

W = TypeVar("W")
C = TypeVar("C")

STALE_ENTRIES = 64  # of the deadline heap that may stay beside the live ones


class JobTable(Generic[W, C]):
    """Waiting and running jobs of one engine. Any thread; only the `wait_` methods block.

    `refusal()` returns the error for a host that accepts no jobs now, or None. It is called with
    the lock held, so a state that changed before holds for every job that comes after.
    """

    def __init__(
        self,
        model: str,
        slots: int,
        settings: QueueSettings,
        clock: Callable[[], float],
        refusal: Callable[[], ServingError | None],
    ) -> None:
        self.slots = slots
        self._model = model
        self._capacity = settings.capacity
        self._clock = clock
        self._refusal = refusal
        self._queue: AdmissionQueue[W, C] = AdmissionQueue(settings)
        self._running: dict[int, Job[W, C]] = {}  # by arrival number
        self._deadlines: list[tuple[float, int]] = []  # heap; entries of jobs that left are stale
        self._departure_rate = DepartureRate()
        self._accounts = Accounts()
        self._arrivals = 0
        self._reserved = 0
        self.busy_since: float | None = None
        """When the first of the present jobs was accepted; None without jobs."""
        self._has_changed = False
        self._is_closed = False
        self._lock = threading.Lock()
        self._change = threading.Condition(self._lock)  # the engine thread waits for it
        self._due = threading.Condition(self._lock)  # the watch thread waits for it
        self.removed = threading.Condition(self._lock)
        """Notified when a job was answered or removed."""
        self._outcomes = {r: metrics.jobs_total.labels(model, r) for r in metrics.REASONS}
        self._queue_seconds = metrics.queue_seconds.labels(model)
        # read at each scrape instead of written at each change
        self._gauges: tuple[tuple[Gauge, Callable[[], float]], ...] = (
            (metrics.requests_waiting.labels(model), lambda: self.waiting),
            (metrics.requests_running.labels(model), lambda: len(self._running)),
            (metrics.queue_oldest_seconds.labels(model), self.oldest_age_s),
        )
        for gauge, read in self._gauges:
            gauge.set_function(read)

    # -- callers ---------------------------------------------------------------------------------
    def check(self, rows: int) -> None:
        """Raise what `accept` of so many rows would raise now."""
        with self._lock:
            self._check(rows)

    def reserve(self, rows: int) -> None:
        """Keep places for rows that are being prepared, or raise what `accept` would raise.
        `release` must follow, after `accept`."""
        with self._lock:
            self._check(rows)
            self._reserved += rows

    def release(self, rows: int) -> None:
        with self._lock:
            self._reserved -= rows

    def accept(self, jobs: Sequence[Job[W, C]], *, is_reserved: bool = False) -> None:
        """Add all jobs to the queue, or raise and add none. Reserved places are always free.

        Raises what `refusal` returns, `InvalidRequest` for more rows than the queue can ever hold,
        `DeadlineExceeded` for jobs that are late already, `Overloaded` without a place for each.
        """
        with self._lock:
            self._check(len(jobs), is_reserved=is_reserved)
            now = self._clock()
            if any(job.is_late(now) for job in jobs):
                late = DeadlineExceeded("the deadline had passed on arrival")
                raise self._rejected(late, len(jobs))
            if self.busy_since is None:
                self.busy_since = now
            on_cancel = self._on_cancel
            earliest = self._deadlines[0] if self._deadlines else None
            for job in jobs:
                self._arrivals += 1
                job.arrival_number = self._arrivals
                job.on_cancel = on_cancel
                job.account = self._accounts.open(job.caller.name, job.caller.weight, 1)
                if job.deadline is not None:
                    heapq.heappush(self._deadlines, (job.deadline, job.arrival_number))
            self._queue.add(jobs)
            if self._deadlines and self._deadlines[0] != earliest:
                self._due.notify_all()
            self._notify_change()

    def _check(self, rows: int, *, is_reserved: bool = False) -> None:
        refusal = self._refusal()
        if refusal is not None:
            raise self._rejected(refusal, rows)
        if not 0 < rows <= self._capacity:
            message = f"a request may have 1 to {self._capacity} rows, not {rows}; split it"
            raise self._rejected(InvalidRequest(message), rows)
        if is_reserved:
            return
        free = self._queue.free_places(self._free_slots)
        if rows > free - self._reserved:
            waiting = len(self._queue) + self._reserved
            retry_after_s = self._retry_after_s()
            # free slots are places too; when the engine then refuses a job, more jobs wait than
            # there are places
            places = max(waiting, len(self._queue) + free)
            taken = f"{waiting} of {places} places are taken"
            message = f"the queue is full: {taken}, {rows} needed; try again later"
            raise self._rejected(Overloaded(message, retry_after_s=retry_after_s), rows)

    def _retry_after_s(self) -> float:
        rate, queued, now = self._departure_rate, len(self._queue), self._clock()
        # rows in preparation cost as much as others do
        mean = self._queue.cost / queued if queued else rate.mean_cost
        slot_seconds = rate.seconds_per_cost * len(self._running)
        left = [
            job.cost * slot_seconds - (now - (job.admitted_at or now))
            for job in self._running.values()
        ]
        first_s = min(left, default=0.0) if len(left) >= self.slots else 0.0
        return rate.retry_after_s(self._queue.cost + self._reserved * mean, first_s)

    def _rejected(self, error: ServingError, rows: int) -> ServingError:
        metrics.admission_rejected_total.labels(self._model, error.reason).inc(rows)
        return error

    def _on_cancel(self, job: Job[W, C]) -> None:
        with self._lock:
            if self._queue.pop(job.arrival_number) is not None:
                job.abandon()
                self._count_removed(job)
            self._notify_change()  # a running job is evicted by the engine thread

    # -- deadlines -------------------------------------------------------------------------------
    def expire(self, now: float) -> None:
        """Fail all late jobs. Waiting ones are removed, running ones evicted after the step."""
        with self._lock:
            while self._deadlines and self._deadlines[0][0] <= now:
                _, number = heapq.heappop(self._deadlines)
                waiting, running = self._queue.pop(number), self._running.get(number)
                if waiting is not None:
                    waiting.fail(DeadlineExceeded("the deadline passed before a slot was free"))
                    self._count_removed(waiting)
                elif running is not None:
                    running.fail(DeadlineExceeded("the deadline passed before it was done"))
                    self.removed.notify_all()
                    self._notify_change()

    def wait_for_deadline(self) -> bool:
        """Block until a deadline has passed; False once the table is closed. Watch thread."""
        with self._lock:
            while not self._is_closed:
                left_s = self._deadlines[0][0] - self._clock() if self._deadlines else None
                if left_s is not None and left_s <= 0:
                    return True
                self._due.wait(None if left_s is None else min(left_s, threading.TIMEOUT_MAX))
            return False

    # -- the engine thread -----------------------------------------------------------------------
    def start_pass(self, now: float) -> AdmissionPass[W, C]:
        """Start an admission pass over the queue; `end_pass` must follow."""
        with self._lock:
            return self._queue.start_pass(self._free_slots, now)

    def end_pass(self, admission: AdmissionPass[W, C]) -> None:
        """End the pass. If it refused a job, free slots do not count as places any more."""
        with self._lock:
            self._queue.end_pass(admission)

    def start_running(self, job: Job[W, C], now: float) -> bool:
        """Move a waiting job to the running ones. False if it left meanwhile: evict it then."""
        with self._lock:
            if self._queue.pop(job.arrival_number) is None:
                return False
            job.admitted_at = now
            self._queue_seconds.observe(max(0.0, now - job.submitted_at), job.exemplar)
            self._running[job.arrival_number] = job
            return True

    def remove(self, job: Job[W, C]) -> None:
        """Remove an answered job, waiting or running, that holds nothing of the engine."""
        with self._lock:
            ran = self._running.pop(job.arrival_number, None)
            if ran is not None or self._queue.pop(job.arrival_number) is not None:
                self._count_removed(job)

    def _count_removed(self, job: Job[W, C]) -> None:
        self._accounts.close(job.account)
        error = job.error
        reason = error.reason if error else "ok"
        self._outcomes.get(reason, self._outcomes["internal"]).inc()
        now = self._clock()
        if job.admitted_at is None:
            self._queue_seconds.observe(max(0.0, now - job.submitted_at), job.exemplar)
        elif error is None:
            seconds = (job.finished_at or now) - job.admitted_at
            self._departure_rate.observe(seconds, len(self._running) + 1, job.cost)
        self.removed.notify_all()
        if self.open_jobs == 0:
            self.busy_since = None
        if len(self._deadlines) > 2 * self.open_jobs + STALE_ENTRIES:
            self._drop_stale_deadlines()

    def _drop_stale_deadlines(self) -> None:
        # at least half of the entries go, and each is dropped once: constant per job, amortised
        live = [e for e in self._deadlines if e[1] in self._running or e[1] in self._queue]
        self._deadlines = live
        heapq.heapify(self._deadlines)

    def wait_for_change(self) -> None:
        """Block until a job was accepted or answered since the last call. Engine thread."""
        with self._lock:
            self._change.wait_for(lambda: self._has_changed)
            self._has_changed = False

    # -- the end ---------------------------------------------------------------------------------
    def fail_all(self, make_error: Callable[[], ServingError]) -> None:
        """Fail all jobs. Waiting ones are removed at once, running ones after their eviction."""
        with self._lock:
            for job in self._queue.clear():
                job.fail(make_error())
                self._count_removed(job)
            for job in self._running.values():
                job.fail(make_error())
            self.removed.notify_all()
            self._notify_change()

    def remove_running(self) -> None:
        """Remove all running jobs after an engine failure; they were answered before."""
        for job in self.running:
            self.remove(job)

    def wait_answered(self, timeout_s: float) -> bool:
        """Block until every job was answered; False when `timeout_s` is over first.

        Answered jobs may still hold a slot: an engine that is stuck inside a step frees none, so
        this does not wait for slots.
        """
        with self.removed:
            return self.removed.wait_for(self._is_answered, min(timeout_s, threading.TIMEOUT_MAX))

    def _is_answered(self) -> bool:
        return not len(self._queue) and all(job.done for job in self._running.values())

    def wake(self) -> None:
        """Have the waiting threads look again: the host stops, or a scripted clock has moved."""
        with self._lock:
            self._due.notify_all()
            self._notify_change()

    def close(self) -> None:
        """End the watch thread, and detach the gauges."""
        self._is_closed = True
        for gauge, _ in self._gauges:
            gauge.set_function(lambda: 0.0)  # frees this table, its host and the engine
        self.wake()

    # -- state -----------------------------------------------------------------------------------
    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def open_jobs(self) -> int:
        """Number of jobs that wait or hold a slot."""
        return len(self._queue) + len(self._running)

    @property
    def running(self) -> list[Job[W, C]]:
        """Jobs that hold a slot, in order of admission."""
        with self._lock:
            return list(self._running.values())

    def describe(self) -> dict[str, object]:
        """Running jobs (id, age, seconds in the slot) and the queue's length, as JSON values."""
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
        return self._free_slots > 0

    def oldest_age_s(self) -> float:
        """Seconds that the head of the queue has waited; 0 for an empty queue."""
        with self._lock:
            head = self._queue.head
        return 0.0 if head is None else max(0.0, self._clock() - head.submitted_at)

    @property
    def _free_slots(self) -> int:
        return max(0, self.slots - len(self._running))

    def _notify_change(self) -> None:
        self._has_changed = True
        self._change.notify_all()
