"""The bounded queue of jobs that wait for a slot, the order in which they are offered, and how long
a full one needs.

First in, first out, with one exception: behind a head that the engine can't take now, the next few
jobs (the skip window) are offered too, until the head has waited too long. Removing a job costs
the same anywhere in the queue, and no operation visits all waiting jobs but `clear`.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from statistics import median_low
from typing import Generic, TypeVar

from predictors.serving.job import Job
from predictors.settings import QueueSettings

W = TypeVar("W")
C = TypeVar("C")

# weight of the newest job: the estimate follows a change of traffic within about ten jobs
RATE_WEIGHT = 0.2
RECENT_JOBS = 15
MAX_MEDIANS = 4.0  # answers that end early make a mean of several medians
MIN_COST = 1e-9
MIN_RETRY_S = 1.0
MAX_RETRY_S = 60.0  # clients of OpenAI's SDK ignore a longer Retry-After
SPREAD = 0.25
GOLDEN = (math.sqrt(5) - 1) / 2


class AdmissionQueue(Generic[W, C]):
    """Waiting jobs in order of arrival, keyed by arrival number. `settings.capacity` bounds them.

    Not thread-safe: `JobTable` holds the lock.
    """

    def __init__(self, settings: QueueSettings) -> None:
        self._settings = settings
        # a linked list under a dict: a plain dict keeps tombstones, which make its first item
        # slower and slower to find when jobs leave from the front
        self._jobs: OrderedDict[int, Job[W, C]] = OrderedDict()
        self._is_blocked = False
        self.cost = 0.0
        """Of all waiting jobs together."""

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, arrival_number: int) -> bool:
        return arrival_number in self._jobs

    @property
    def head(self) -> Job[W, C] | None:
        return next(iter(self._jobs.values()), None)

    def free_places(self, free_slots: int) -> int:
        """How many more jobs may be added: free places of the queue, plus free slots.

        Free slots do not count while the engine refuses waiting jobs: it would refuse the next
        job too.
        """
        return self._settings.capacity - len(self._jobs) + (0 if self._is_blocked else free_slots)

    def add(self, jobs: Iterable[Job[W, C]]) -> None:
        for job in jobs:
            self._jobs[job.arrival_number] = job
            self.cost += job.cost

    def pop(self, arrival_number: int) -> Job[W, C] | None:
        """Remove a job from anywhere in the queue; None when it does not wait."""
        job = self._jobs.pop(arrival_number, None)
        if job is not None:
            self.cost = self.cost - job.cost if self._jobs else 0.0
        self._is_blocked = self._is_blocked and bool(self._jobs)
        return job

    def clear(self) -> list[Job[W, C]]:
        """Remove all jobs and return them in order."""
        jobs = list(self._jobs.values())
        self._jobs.clear()
        self.cost = 0.0
        self._is_blocked = False
        return jobs

    def start_pass(self, free_slots: int, now: float) -> AdmissionPass[W, C]:
        """Start one admission pass. Free slots and skip window bound the jobs that it offers."""
        count = free_slots + 1 + self._settings.skip_window if free_slots > 0 else 0
        return AdmissionPass(list(islice(self._jobs.values(), count)), self._settings, now)

    def end_pass(self, admission: AdmissionPass[W, C]) -> None:
        """Remember whether the engine refused a job that still waits."""
        self._is_blocked = any(job.arrival_number in self._jobs for job in admission.refused)


class AdmissionPass(Generic[W, C]):
    """One pass over the front of the queue: iterates over the jobs to offer to the engine."""

    def __init__(self, shortlist: list[Job[W, C]], settings: QueueSettings, now: float) -> None:
        self._shortlist = shortlist
        self._skip_window = settings.skip_window
        self._overdue_before = now - settings.skip_max_wait_s
        self.refused: list[Job[W, C]] = []

    def __iter__(self) -> Iterator[Job[W, C]]:
        skips = 0
        for job in self._shortlist:
            if self.refused:
                if skips == self._skip_window or self._is_overdue(self.refused[0]):
                    return
                skips += 1
            yield job

    def refuse(self, job: Job[W, C]) -> None:
        """Note that the engine can't take `job` now; jobs behind it may be offered."""
        self.refused.append(job)

    def _is_overdue(self, job: Job[W, C]) -> bool:
        return job.submitted_at < self._overdue_before


class DepartureRate:
    """Engine seconds per unit of cost, of the recent jobs. Not thread-safe: `JobTable` holds the
    lock.

    Costs make one large picture count for what it is. Where they mislead, or jobs have none, a cap
    at a few medians lets the estimate forget an unusual job as soon as there are two others.
    """

    def __init__(self) -> None:
        self._seconds = self._cost = self._jobs = 0.0  # sums; older jobs weigh less
        self._recent: deque[float] = deque(maxlen=RECENT_JOBS)  # seconds per unit of cost
        self._refusals = 0

    def observe(self, seconds_in_slot: float, num_running: int, cost: float = 1.0) -> None:
        """Count a finished job, which ran beside others: `num_running` jobs, itself included."""
        share = max(0.0, seconds_in_slot) / max(1, num_running)
        cost = max(cost, MIN_COST)
        keep = 1 - RATE_WEIGHT
        self._seconds = keep * self._seconds + share
        self._cost = keep * self._cost + cost
        self._jobs = keep * self._jobs + 1
        self._recent.append(share / cost)

    @property
    def seconds_per_cost(self) -> float:
        """0 before the first job is finished."""
        if not self._recent:
            return 0.0
        return min(self._seconds / self._cost, MAX_MEDIANS * median_low(self._recent))

    @property
    def mean_cost(self) -> float:
        return self._cost / self._jobs if self._jobs else 1.0

    def retry_after_s(self, waiting_cost: float, first_s: float = 0.0) -> float:
        """Estimate the seconds until jobs of `waiting_cost` have left, 1 to 60, plus a spread. It
        is not less than `first_s`, the time until the next slot is free.

        Each refusal gets up to a quarter more, so that callers who were refused together do not
        come back together. Steps of the golden ratio fill the quarter evenly without random
        numbers.
        """
        estimate = max(waiting_cost * self.seconds_per_cost, first_s)
        self._refusals += 1
        spread = 1 + SPREAD * math.fmod(self._refusals * GOLDEN, 1.0)
        return min(MAX_RETRY_S, max(MIN_RETRY_S, estimate) * spread)
