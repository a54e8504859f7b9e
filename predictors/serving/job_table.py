"""The table of all accepted jobs that have not left: waiting, running, and their deadlines.

Callers (`accept`, cancelled jobs), the watch thread (`expire`) and the engine thread
(`start_pass`, `start_running`, `remove`) share this table and nothing else. One lock guards it, and
no lock is held while an engine works. Every accepted job is removed and counted exactly once; no
operation visits all waiting jobs but `fail_all`.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from prometheus_client import Gauge

from predictors import metrics
from predictors.errors import DeadlineExceeded, ServingError
from predictors.serving.accounts import ANYONE, Accounts, Caller
from predictors.serving.admission import UNKNOWN, UNMEASURED_JOB_S, Admission, costs_of
from predictors.serving.estimates import Costs, Estimates
from predictors.serving.job import Job
from predictors.serving.queue import AdmissionPass, AdmissionQueue
from predictors.serving.slots import Slots
from predictors.settings import QueueSettings

W = TypeVar("W")
C = TypeVar("C")

STALE_ENTRIES = 64  # stale entries that the heap of deadlines may hold beside the live ones


class JobTable(Generic[W, C]):
    """Waiting and running jobs of one engine. Any thread; only the `wait_` methods block.

    `refusal()` returns the error for a host that accepts no jobs now, or None. It is called with
    the lock held, so a state that changed before holds for every job that comes after.
    """

    def __init__(
        self,
        model: str,
        slots: int,
        spare_slots: int,
        settings: QueueSettings,
        clock: Callable[[], float],
        refusal: Callable[[], ServingError | None],
    ) -> None:
        self._clock = clock
        self._queue: AdmissionQueue[W, C] = AdmissionQueue(settings)
        self._deadlines: list[tuple[float, int]] = []  # heap; entries of jobs that left are stale
        self._accounts = Accounts()
        self._estimates = Estimates()
        self._slots: Slots[W, C] = Slots(slots, spare_slots, self._accounts, self._estimate_s)
        self._admission: Admission[W, C] = Admission(
            model, settings, clock, refusal, self._accounts, self._queue, self._slots,
            self._estimates,
        )  # fmt: skip
        self._places = self._admission.places
        self._arrivals = 0
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
            (metrics.requests_running.labels(model), lambda: len(self._slots.running)),
            (metrics.queue_oldest_seconds.labels(model), self.oldest_age_s),
            (metrics.queue_work_seconds.labels(model), self.waiting_s),
            (metrics.callers.labels(model), lambda: self._accounts.present),
        )
        for gauge, read in self._gauges:
            gauge.set_function(read)

    # -- accepting requests ----------------------------------------------------------------------
    def check_accepting(
        self,
        rows: int,
        caller: Caller = ANYONE,
        costs: Costs = UNKNOWN,
        deadline: float | None = None,
    ) -> None:
        """Raise what `accept` of so many rows would raise now."""
        with self._lock:
            self._admission.check(rows, caller, costs, deadline)

    def reserve(
        self,
        rows: int,
        caller: Caller = ANYONE,
        costs: Costs = UNKNOWN,
        deadline: float | None = None,
        least_costs: Costs | None = None,
    ) -> None:
        """Keep places for rows that are being prepared, or raise what `accept` would raise.
        `accept` takes them over; `release` must follow if it did not."""
        with self._lock:
            self._admission.check(rows, caller, costs, deadline, least_costs=least_costs)
            self._places.add(self._accounts.of(caller), rows)

    def release(self, rows: int, caller: Caller = ANYONE) -> None:
        with self._lock:
            account = self._accounts.of(caller)
            self._places.add(account, -rows)
            self._accounts.close_unused(account)

    def accept(self, jobs: Sequence[Job[W, C]], *, is_reserved: bool = False) -> None:
        """Add all jobs of a request, or raise and add none. Reserved places are always free.

        Raises what `refusal` returns, `InvalidRequest` for more rows than the queue can ever hold,
        `DeadlineExceeded` for jobs that are late already or clearly will be, `Overloaded` without a
        place for each.
        """
        caller, deadline = (jobs[0].caller, jobs[0].deadline) if jobs else (ANYONE, None)
        with self._lock:
            reads = self._admission.reads_costs
            costs = costs_of(jobs) if reads else UNKNOWN
            least_costs = costs_of(jobs, at_least=True) if reads and deadline is not None else None
            self._admission.check(
                len(jobs), caller, costs, deadline, least_costs=least_costs, is_reserved=is_reserved
            )
            now = self._clock()
            if deadline is not None and now >= deadline:
                late = DeadlineExceeded("the deadline had passed on arrival")
                raise self._admission.rejected(late, len(jobs))
            if self.busy_since is None:
                self.busy_since = now
            on_cancel = self._on_cancel
            earliest = self._deadlines[0] if self._deadlines else None
            account = self._accounts.of(caller)
            self._accounts.add_waiting(account, len(jobs))
            if not is_reserved:
                self._places.add(account, len(jobs))
            for job in jobs:
                self._arrivals += 1
                job.arrival_number = self._arrivals
                job.on_cancel = on_cancel
                job.account = account
                if job.deadline is not None:
                    heapq.heappush(self._deadlines, (job.deadline, job.arrival_number))
                self._admission.open_cost += job.cost
            self._queue.add(jobs)
            if self._deadlines and self._deadlines[0] != earliest:
                self._due.notify_all()
            self._notify_change()

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
                waiting, running = self._queue.pop(number), self._slots.running.get(number)
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
            slots, is_shared = self._slots, self._accounts.present > 1
            # alone there is no other to compare with
            pledged_s = slots.pledged_s() if is_shared else self._accounts.none_pledged()
            return self._queue.start_pass(slots.offered(), now, pledged_s, self._estimate_s)

    def next_job(self, admission: AdmissionPass[W, C]) -> Job[W, C] | None:
        """The next job that the pass offers; None at its end."""
        with self._lock:
            return next(admission.offers, None)

    def end_pass(self, admission: AdmissionPass[W, C]) -> None:
        """End the pass. If it refused a job, free slots do not count as places any more."""
        with self._lock:
            self._queue.end_pass(admission)

    def _estimate_s(self, job: Job[W, C]) -> float:
        # before anything was measured jobs count alike
        return self._estimates.of_job(job.cost_kind, job.cost) or UNMEASURED_JOB_S

    def start_running(self, job: Job[W, C], now: float) -> bool:
        """Move a waiting job to the running ones. False if it left meanwhile: evict it then."""
        with self._lock:
            if self._queue.pop(job.arrival_number) is None:
                return False
            job.admitted_at = now
            account = job.account
            # alone there is no other to compare with
            pledged_s = self._slots.pledged_s() if self._accounts.present > 1 else {}
            self._accounts.start(account, pledged_s.get(account, 0.0))
            self._places.add(account, -1)
            self._queue_seconds.observe(max(0.0, now - job.submitted_at), job.exemplar)
            self._slots.running[job.arrival_number] = job
            return True

    def remove(self, job: Job[W, C]) -> None:
        """Remove an answered job, waiting or running, that holds nothing of the engine."""
        with self._lock:
            ran = self._slots.running.pop(job.arrival_number, None)
            if ran is not None or self._queue.pop(job.arrival_number) is not None:
                self._count_removed(job)

    def _count_removed(self, job: Job[W, C]) -> None:
        was_running = job.admitted_at is not None
        if not was_running:
            self._places.add(job.account, -1)
        self._accounts.leave(job.account, was_running=was_running)
        if was_running and job.account.waiting:
            self._queue.add_unserved(job.account)
        self._admission.open_cost -= job.cost
        error = job.error
        reason = error.reason if error else "ok"
        self._outcomes.get(reason, self._outcomes["internal"]).inc()
        now = self._clock()
        if job.admitted_at is None:
            self._queue_seconds.observe(max(0.0, now - job.submitted_at), job.exemplar)
        elif error is None:
            self._measure(job, now)
        self.removed.notify_all()
        open_jobs = self.open_jobs
        if open_jobs == 0:
            self.busy_since = None
            self._admission.open_cost = 0.0  # nothing is left of rounding errors either
        if len(self._deadlines) > 2 * open_jobs + STALE_ENTRIES:
            self._drop_stale_deadlines()

    def _measure(self, job: Job[W, C], now: float) -> None:
        """Learn from a job that has finished."""
        running = len(self._slots.running) + 1
        self._estimates.observe(
            job.used_s,
            job.spent_cost,
            job.cost_kind,
            is_full=running >= self._slots.num or self._queue.is_blocked,
            now=now,
        )

    def _drop_stale_deadlines(self) -> None:
        # at least half of the entries go, and each is dropped once: constant per job, amortised
        live = [e for e in self._deadlines if e[1] in self._slots.running or e[1] in self._queue]
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
            for job in self._slots.running.values():
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

    def wait_for_none(self, is_meant: Callable[[W], bool]) -> None:
        """Block until no job that waits or holds a slot has a work of that kind."""
        with self.removed:
            self.removed.wait_for(lambda: not any(is_meant(job.work) for job in self._open()))

    def _open(self) -> Iterator[Job[W, C]]:
        yield from self._queue.jobs.values()
        yield from self._slots.running.values()

    def _is_answered(self) -> bool:
        return not len(self._queue) and all(job.done for job in self._slots.running.values())

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

    def waiting_s(self) -> float:
        """Engine seconds that the waiting jobs need, as far as estimates go."""
        with self._lock:
            return self._admission.waiting_s()

    @property
    def open_jobs(self) -> int:
        """Number of jobs that wait or hold a slot."""
        return len(self._queue.jobs) + len(self._slots.running)

    @property
    def running(self) -> list[Job[W, C]]:
        """Jobs that hold a slot, in order of admission."""
        with self._lock:
            return list(self._slots.running.values())

    def describe(self) -> dict[str, object]:
        """Running jobs (id, age, seconds in the slot), the queue's length and the callers, as JSON
        values."""
        with self._lock:
            running, callers = list(self._slots.running.values()), self._accounts.all_present()
        now = self._clock()
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
            "queue_capacity": self._places.capacity,
            "queue_oldest_s": round(self.oldest_age_s(), 3),
            "queue_work_s": round(self.waiting_s(), 3),
            "slots": self._slots.num,
            "callers": [
                {
                    "name": account.name,
                    "weight": account.weight,
                    "used_s": round(account.used_s, 3),
                    "waiting": account.waiting,
                    "running": account.running,
                }
                for account in callers
            ],
        }

    def has_room(self) -> bool:
        """True if a job waits and there is a slot, perhaps a spare one for another caller."""
        return bool(self._queue.jobs) and self._slots.has_room

    def oldest_age_s(self) -> float:
        """Seconds that the head of the queue has waited; 0 for an empty queue."""
        with self._lock:
            head = self._queue.head
        return 0.0 if head is None else max(0.0, self._clock() - head.submitted_at)

    def _notify_change(self) -> None:
        self._has_changed = True
        self._change.notify_all()
