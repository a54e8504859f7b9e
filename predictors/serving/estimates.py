"""Estimates of jobs' engine seconds, learned from what finished jobs were charged.

A job's work says its cost, in a unit of the engine's. Each kind of work (`cost_kind`, such as a
quality tier) has its own rate of seconds per cost. Jobs that share steps with many others are
charged less: once a job has finished while the engine was full, only such jobs count.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import median_low

# weight of the newest job: the estimate follows a change of traffic within about ten jobs
RATE_WEIGHT = 0.2
RECENT_JOBS = 15
MAX_MEDIANS = 4.0  # cap of a rate, in medians: where many answers end early the mean is several
MIN_COST = 1e-9
MAX_KINDS = 16  # kinds of work with a rate of their own; further ones share one
OTHER_KINDS = "..."
ENOUGH_JOBS = 5  # finished jobs before a request is refused for an estimate
MIN_RETRY_S = 1.0
MAX_RETRY_S = 60.0  # clients of OpenAI's SDK ignore a longer Retry-After
SPREAD = 0.25
GOLDEN = (math.sqrt(5) - 1) / 2

Costs = Mapping[str, float]
"""Cost by kind of work."""


class CostRate:
    """Engine seconds per unit of cost, of the recent jobs of a kind.

    It is a weighted mean, capped at a few medians: one unusual job is forgotten as soon as there
    are two others.
    """

    def __init__(self) -> None:
        self.num_full = 0
        """Jobs that finished while the engine was full."""
        self.cost = self.jobs = 0.0
        """Sums over the recent jobs; older ones weigh less."""
        self._seconds = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT_JOBS)  # seconds per unit of cost
        self._seconds_per_cost: float | None = 0.0  # None: to be computed

    def observe(self, seconds: float, cost: float = 1.0, *, is_full: bool = True) -> None:
        """Count a finished job."""
        if not is_full and self.num_full:
            return
        if is_full and not self.num_full:
            self._seconds = self.cost = self.jobs = 0.0
            self._recent.clear()
        self.num_full += is_full
        seconds, cost = max(0.0, seconds), max(cost, MIN_COST)
        keep = 1 - RATE_WEIGHT
        self._seconds = keep * self._seconds + seconds
        self.cost = keep * self.cost + cost
        self.jobs = keep * self.jobs + 1
        self._recent.append(seconds / cost)
        self._seconds_per_cost = None

    @property
    def mean(self) -> float:
        """Seconds per unit of cost without the cap; a job must have been counted."""
        return self._seconds / self.cost

    @property
    def seconds_per_cost(self) -> float:
        """0 before the first job is finished."""
        if self._seconds_per_cost is None:
            most = MAX_MEDIANS * median_low(self._recent)
            self._seconds_per_cost = min(self.mean, most)
        return self._seconds_per_cost


class Estimates:
    """The rates of one engine's kinds of work. Not thread-safe: `JobTable` holds the lock."""

    def __init__(self) -> None:
        self.observed_at = -math.inf
        """When a job was counted last."""
        self.is_sure = False
        """True once enough jobs were measured to refuse a request by their rates."""
        self.most_per_cost, self.most_cost = 0.0, MIN_COST
        """No rate and no mean cost of jobs is above these."""
        self._num_full = 0
        self._kinds: dict[str, CostRate] = {}
        self._refusals = 0

    def observe(self, seconds: float, cost: float, kind: str, *, is_full: bool, now: float) -> None:
        """Count a finished job that was charged so many engine seconds."""
        self.observed_at = now
        if is_full and not self.is_sure:
            self._num_full += 1
            self.is_sure = self._num_full >= ENOUGH_JOBS
        rate = self._kinds.get(kind)
        if rate is None:
            if len(self._kinds) >= MAX_KINDS:
                kind = OTHER_KINDS
            rate = self._kinds.setdefault(kind, CostRate())
        if cost > self.most_cost:
            self.most_cost = cost
        if seconds > self.most_per_cost * cost:
            self.most_per_cost = max(self.most_per_cost, seconds / max(cost, MIN_COST))
        rate.observe(seconds, cost, is_full=is_full)

    def tighten(self) -> None:
        """Lower `most_per_cost` and `most_cost` to the means of recent jobs."""
        rates = self._kinds.values()
        self.most_per_cost = max((rate.mean for rate in rates), default=0.0)
        self.most_cost = max((rate.cost / rate.jobs for rate in rates), default=MIN_COST)

    def seconds(self, costs: Costs) -> float:
        """Engine seconds of work; 0 before the first job is finished."""
        return sum(cost * self._seconds_per_cost(kind) for kind, cost in costs.items())

    def sure_seconds(self, costs: Costs) -> float:
        """Engine seconds of the part of the work whose kinds were measured often enough."""
        return sum(
            cost * rate.seconds_per_cost
            for kind, cost in costs.items()
            if (rate := self._kinds.get(kind)) is not None and rate.num_full >= ENOUGH_JOBS
        )

    def of_job(self, kind: str, cost: float) -> float:
        """Engine seconds of a job; 0 before the first one is finished."""
        return cost * self._seconds_per_cost(kind)

    @property
    def mean_s(self) -> float:
        """Engine seconds of a job of the mean cost; 0 before the first one is finished."""
        rates = self._kinds.values()
        jobs = sum(rate.jobs for rate in rates)
        return sum(rate.seconds_per_cost * rate.cost for rate in rates) / jobs if jobs else 0.0

    def _seconds_per_cost(self, kind: str) -> float:
        """The rate of the kind, else the mean of all."""
        if (own := self._kinds.get(kind)) is not None:
            return own.seconds_per_cost
        rates = self._kinds.values()
        cost = sum(rate.cost for rate in rates)
        return sum(rate.seconds_per_cost * rate.cost for rate in rates) / cost if cost else 0.0

    def retry_after_s(self, wait_s: float) -> float:
        """The Retry-After of a caller whose turn is in `wait_s`: 1 to 60 s, plus a spread.

        Each refusal gets up to a quarter more, so that callers who were refused together do not
        come back together. Steps of the golden ratio fill the quarter evenly without random
        numbers.
        """
        self._refusals += 1
        spread = 1 + SPREAD * math.fmod(self._refusals * GOLDEN, 1.0)
        return min(MAX_RETRY_S, max(MIN_RETRY_S, wait_s) * spread)
