"""Decides which requests the queue accepts now, and makes the errors of those it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from predictors import metrics
from predictors.errors import DeadlineExceeded, InvalidRequest, Overloaded, ServingError
from predictors.serving.accounts import Account, Accounts, Caller
from predictors.serving.estimates import Costs, Estimates
from predictors.serving.places import Places
from predictors.serving.queue import AdmissionQueue
from predictors.serving.slots import Slots
from predictors.settings import QueueSettings

W = TypeVar("W")
C = TypeVar("C")

UNKNOWN: Costs = {}
SAFETY = 1.5  # a request is refused if it needs so many times the seconds left to its deadline
UNMEASURED_JOB_S = 1.0  # engine seconds that a job counts for before any has finished
# an idle engine takes a request in spite of estimates that are older: it may be faster now
TRUSTED_S = 60.0


class Admission(Generic[W, C]):
    """The rules of one engine's queue: places, engine seconds, deadlines. Not thread-safe:
    `JobTable` holds the lock. An idle engine's small request passes them in a few comparisons."""

    def __init__(
        self,
        model: str,
        settings: QueueSettings,
        clock: Callable[[], float],
        refusal: Callable[[], ServingError | None],
        accounts: Accounts,
        queue: AdmissionQueue[W, C],
        slots: Slots[W, C],
        estimates: Estimates,
    ) -> None:
        self.places = Places(settings.capacity)
        self.estimates = estimates
        self.open_cost = 0.0
        """Cost of the jobs that wait or run, all kinds added up. `JobTable` counts it."""
        self._capacity_s = settings.capacity_s
        self._model = model
        self._clock = clock
        self._refusal = refusal
        self._accounts = accounts
        self._queue = queue
        self._slots = slots

    def check(
        self,
        rows: int,
        caller: Caller,
        costs: Costs = UNKNOWN,
        deadline: float | None = None,
        *,
        least_costs: Costs | None = None,
        is_reserved: bool = False,
    ) -> None:
        """Raise if a request with so many rows can't be accepted now. `costs` is the cost of all
        rows together, empty if unknown; `least_costs`, of rows that end as early as they can, is
        compared with the deadline. Rows that are reserved have their places already."""
        refusal = self._refusal()
        if refusal is not None:
            raise self.rejected(refusal, rows)
        capacity = self.places.capacity
        if not 0 < rows <= capacity:
            message = f"a request may have 1 to {capacity} rows, not {rows}; split it"
            raise self.rejected(InvalidRequest(message), rows)
        if not is_reserved:
            if self.places.taken + rows > self.places.half:
                self._check_places(rows, caller)
            if self._capacity_s > 0 and self.places.taken:
                self._check_seconds(rows, caller, costs)
        if deadline is not None and self.estimates.is_sure:
            at_least = costs if least_costs is None else least_costs
            self._check_deadline(rows, caller, at_least, deadline, rows if is_reserved else 0)

    @property
    def reads_costs(self) -> bool:
        """True if a rule depends on the costs of the rows."""
        return self._capacity_s > 0 or self.estimates.is_sure

    def rejected(self, error: ServingError, rows: int) -> ServingError:
        """Count the refusal of so many rows; returns the error."""
        metrics.admission_rejected_total.labels(self._model, error.reason).inc(rows)
        return error

    # -- rules -----------------------------------------------------------------------------------
    def _check_places(self, rows: int, caller: Caller) -> None:
        account = self._accounts.find(caller)
        own = 0 if account is None else account.places
        # while the engine refuses jobs, free slots do not count as places
        slots = 0 if self._queue.is_blocked else self._slots.free_for(account, caller.weight)
        if rows > self.places.free(own, slots):
            message = self.places.refusal(own, rows, slots)
            raise self._overloaded(message, rows, caller, account)

    def _check_seconds(self, rows: int, caller: Caller, costs: Costs) -> None:
        """Apply the rule of `Places` to engine seconds. A request that would wait alone is never
        refused."""
        account = self._accounts.find(caller)
        needed = self.estimates.seconds(costs) or rows * self.estimates.mean_s
        capacity, total, own = self._capacity_s, self.waiting_s(), self._own_s(account)
        places = 0 if account is None else account.places
        if places == self.places.taken:
            is_free = own + needed <= capacity
        else:
            part = capacity / self.places.callers_with(places)
            is_free = own + needed <= capacity / 2 and total + needed <= 1.5 * capacity
            is_free &= total + needed <= capacity or own + needed <= part
        if not is_free:
            message = (
                f"the queue is full: work of about {total:.3g} s waits, {own:.3g} s of it this "
                f"caller's, and {needed:.3g} s more do not fit into {capacity:.3g} s; "
                "try again later"
            )
            raise self._overloaded(message, rows, caller, account)

    def _check_deadline(
        self, rows: int, caller: Caller, costs: Costs, deadline: float, reserved: int
    ) -> None:
        """Raise if the estimate says clearly that the deadline would pass first. `reserved` counts
        the rows in preparation that are this request's own."""
        now = self._clock()
        left_s = deadline - now
        if left_s > SAFETY * self._most_s(costs):
            return
        is_idle = not self._slots.running and not self._queue.jobs
        if is_idle and not costs:
            return
        if left_s <= 0 or (is_idle and now - self.estimates.observed_at > TRUSTED_S):
            return
        own_s = self.estimates.sure_seconds(costs)
        wait_s = 0.0
        if not is_idle:
            wait_s = self._wait_s(caller, self._accounts.find(caller), own_s, reserved)
        if wait_s + own_s > SAFETY * left_s:
            later = "" if own_s > SAFETY * left_s else ", or try later"
            message = (
                f"this needs about {wait_s + own_s:.3g} s, {wait_s:.3g} s of them to wait, and "
                f"its deadline is in {left_s:.3g} s; ask for less or allow more time{later}"
            )
            raise self.rejected(DeadlineExceeded(message), rows)
        self.estimates.tighten()

    def _overloaded(
        self, message: str, rows: int, caller: Caller, account: Account | None
    ) -> ServingError:
        wait_s = self._wait_s(caller, account)
        retry_after_s = self.estimates.retry_after_s(wait_s)
        return self.rejected(Overloaded(message, retry_after_s=retry_after_s), rows)

    # -- estimates -------------------------------------------------------------------------------
    def _most_s(self, costs: Costs) -> float:
        """An upper bound, from a few sums, of the seconds until a request of these costs is done:
        all open work and its own."""
        estimates = self.estimates
        cost = self.open_cost + self.places.taken * estimates.most_cost
        if costs:
            cost += sum(costs.values())
        return cost * estimates.most_per_cost + len(self._slots.running) * UNMEASURED_JOB_S

    def waiting_s(self, but_rows: int = 0) -> float:
        """Engine seconds of the work that waits. Rows in preparation count as jobs of the mean
        cost; `but_rows` of them are left out."""
        waiting_s = self.estimates.seconds(self._queue.costs)
        in_preparation = self.places.taken - len(self._queue) - but_rows
        return waiting_s + (in_preparation * self.estimates.mean_s if in_preparation else 0.0)

    def _own_s(self, account: Account | None, but_rows: int = 0) -> float:
        """The part of `waiting_s` that is this caller's."""
        if account is None:
            return 0.0
        line = self._queue.lines.get(account)
        own_s = 0.0 if line is None else self.estimates.seconds(line.costs)
        in_preparation = account.places - account.waiting - but_rows
        return own_s + in_preparation * self.estimates.mean_s

    def _wait_s(
        self, caller: Caller, account: Account | None, added_s: float = 0.0, but_rows: int = 0
    ) -> float:
        """The least seconds that a caller's next jobs wait if all callers share the engine by
        weight: for its earlier jobs, and for others while its own take `added_s`."""
        share = self._accounts.share(caller.weight, 1.0, account)
        # jobs of a high priority go before the caller's other jobs
        before_s = self._own_s(account, but_rows) if caller.level <= 0 else 0.0
        fair_s = (before_s + added_s) / share - added_s
        waiting_s = self.waiting_s(but_rows)
        return max(min(waiting_s, fair_s), self._first_slot_s(caller, account))

    def _first_slot_s(self, caller: Caller, account: Account | None) -> float:
        """Seconds until a slot is free for the caller."""
        if self._slots.free_for(account, caller.weight) > 0:
            return 0.0
        return self._slots.first_free_s()


def costs_of(rows: Iterable[object], *, at_least: bool = False) -> Costs:
    """The cost of all rows, by kind of work. A row may have `cost`, `cost_kind` and `least_cost`;
    without a `cost` it is left out. `at_least` adds up `least_cost` where a row has one."""
    total: dict[str, float] = {}
    for row in rows:
        cost: float | None = getattr(row, "cost", None)
        if at_least:
            cost = getattr(row, "least_cost", cost)
        if cost is not None:
            kind: str = getattr(row, "cost_kind", "")
            total[kind] = total.get(kind, 0.0) + cost
    return total
