"""Which requests are accepted now, and the errors of those that are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from predictors import metrics
from predictors.errors import InvalidRequest, Overloaded, ServingError
from predictors.serving.accounts import Accounts, Caller
from predictors.serving.departure_rate import DepartureRate
from predictors.serving.places import Places
from predictors.serving.queue import AdmissionQueue
from predictors.serving.slots import Slots

W = TypeVar("W")
C = TypeVar("C")


class Admission(Generic[W, C]):
    """The rules of one engine's queue. Not thread-safe: `JobTable` holds the lock."""

    def __init__(
        self,
        model: str,
        clock: Callable[[], float],
        refusal: Callable[[], ServingError | None],
        accounts: Accounts,
        places: Places,
        queue: AdmissionQueue[W, C],
        slots: Slots[W, C],
        rate: DepartureRate,
    ) -> None:
        self._model = model
        self._clock = clock
        self._refusal = refusal
        self._accounts = accounts
        self._places = places
        self._queue = queue
        self._slots = slots
        self._rate = rate

    def check(self, rows: int, caller: Caller, *, is_reserved: bool = False) -> None:
        """Raise if a request with so many rows can't be accepted now. Reserved rows have places."""
        refusal = self._refusal()
        if refusal is not None:
            raise self.rejected(refusal, rows)
        capacity = self._places.capacity
        if not 0 < rows <= capacity:
            message = f"a request may have 1 to {capacity} rows, not {rows}; split it"
            raise self.rejected(InvalidRequest(message), rows)
        if not is_reserved:
            self._check_places(rows, caller)

    def _check_places(self, rows: int, caller: Caller) -> None:
        account = self._accounts.find(caller)
        own = 0 if account is None else account.places
        # while the engine refuses jobs free slots are no places
        slots = 0 if self._queue.is_blocked else self._slots.free_for(account, caller.weight)
        if rows > self._places.free(own, slots):
            message = self._places.refusal(own, rows, slots)
            raise self.rejected(Overloaded(message, retry_after_s=self._retry_after_s()), rows)

    def _retry_after_s(self) -> float:
        rate, queued, now = self._rate, len(self._queue), self._clock()
        # rows in preparation cost as much as others do
        mean = self._queue.cost / queued if queued else rate.mean_cost
        running = self._slots.running
        slot_seconds = rate.seconds_per_cost * len(running)
        left = [
            job.cost * slot_seconds - (now - (job.admitted_at or now)) for job in running.values()
        ]
        first_s = min(left, default=0.0) if len(left) >= self._slots.num else 0.0
        reserved = self._places.taken - queued
        return rate.retry_after_s(self._queue.cost + reserved * mean, first_s)

    def rejected(self, error: ServingError, rows: int) -> ServingError:
        """Count the refusal of so many rows; returns the error."""
        metrics.admission_rejected_total.labels(self._model, error.reason).inc(rows)
        return error
