"""Engine seconds of jobs, learned from what finished jobs were charged.

A job's work tells its cost in a unit of the engine's. Kinds of work (`cost_kind`, such as a quality
tier) have rates of their own. Jobs that share steps with many others are charged less, so as soon
as there are any only those count that finish while the engine is full.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import median_low

# weight of the newest job: the estimate follows a change of traffic within about ten jobs
RATE_WEIGHT = 0.2
RECENT_JOBS = 15
MAX_MEDIANS = 4.0  # answers that end early make a mean of several medians
MIN_COST = 1e-9
MAX_KINDS = 16  # kinds of work with a rate of their own; further ones share one
ENOUGH_JOBS = 5  # finished jobs before a request is refused for an estimate
MIN_RETRY_S = 1.0
MAX_RETRY_S = 60.0  # clients of OpenAI's SDK ignore a longer Retry-After
SPREAD = 0.25
GOLDEN = (math.sqrt(5) - 1) / 2

Costs = Mapping[str, float]
"""Cost by kind of work."""


class CostRate:
    """Engine seconds per unit of cost, of the recent jobs of a kind.

    Costs make one large picture count for what it is. Where they mislead, or jobs have none, a cap
    at a few medians lets the estimate forget an unusual job as soon as there are two others.
    """

    def __init__(self) -> None:
        self.seconds_per_cost = 0.0
        """0 before the first job is finished."""
        self.num_full = 0
        """Jobs that finished while the engine was full."""
        self._seconds = self._cost = self._jobs = 0.0  # sums; older jobs weigh less
        self._recent: deque[float] = deque(maxlen=RECENT_JOBS)  # seconds per unit of cost

    def observe(self, seconds: float, cost: float = 1.0, *, is_full: bool = True) -> None:
        """Count a finished job."""
        if not is_full and self.num_full:
            return
        if is_full and not self.num_full:
            self._seconds = self._cost = self._jobs = 0.0
            self._recent.clear()
        self.num_full += is_full
        seconds, cost = max(0.0, seconds), max(cost, MIN_COST)
        keep = 1 - RATE_WEIGHT
        self._seconds = keep * self._seconds + seconds
        self._cost = keep * self._cost + cost
        self._jobs = keep * self._jobs + 1
        self._recent.append(seconds / cost)
        most = MAX_MEDIANS * median_low(self._recent)
        self.seconds_per_cost = min(self._seconds / self._cost, most)

    @property
    def mean_s(self) -> float:
        """Engine seconds of a job of the mean cost."""
        return self.seconds_per_cost * self._cost / self._jobs if self._jobs else 0.0


class Estimates:
    """The rates of one engine's kinds of work. Not thread-safe: `JobTable` holds the lock."""

    def __init__(self) -> None:
        self.of_all = CostRate()
        self.observed_at = -math.inf
        """When a job was counted last."""
        self._kinds: dict[str, CostRate] = {}
        self._refusals = 0

    def observe(self, seconds: float, cost: float, kind: str, *, is_full: bool, now: float) -> None:
        """Count a finished job that was charged so many engine seconds."""
        self.observed_at = now
        self.of_all.observe(seconds, cost, is_full=is_full)
        if kind not in self._kinds and len(self._kinds) < MAX_KINDS:
            self._kinds[kind] = CostRate()
        if kind in self._kinds:
            self._kinds[kind].observe(seconds, cost, is_full=is_full)

    def seconds(self, costs: Costs) -> float:
        """Engine seconds of work; 0 before the first job is finished."""
        return sum(cost * self._rate(kind).seconds_per_cost for kind, cost in costs.items())

    def sure_seconds(self, costs: Costs) -> float:
        """The same of those kinds of which enough jobs were measured."""
        return sum(
            cost * rate.seconds_per_cost
            for kind, cost in costs.items()
            if (rate := self._kinds.get(kind)) is not None and rate.num_full >= ENOUGH_JOBS
        )

    @property
    def is_sure(self) -> bool:
        """True once enough jobs were measured."""
        return self.of_all.num_full >= ENOUGH_JOBS

    def _rate(self, kind: str) -> CostRate:
        return self._kinds.get(kind, self.of_all)

    def retry_after_s(self, wait_s: float) -> float:
        """The Retry-After of a caller whose turn is in `wait_s`: 1 to 60 s, plus a spread.

        Each refusal gets up to a quarter more, so that callers who were refused together do not
        come back together. Steps of the golden ratio fill the quarter evenly without random
        numbers.
        """
        self._refusals += 1
        spread = 1 + SPREAD * math.fmod(self._refusals * GOLDEN, 1.0)
        return min(MAX_RETRY_S, max(MIN_RETRY_S, wait_s) * spread)


class WaitingCost:
    """Sums of the costs of jobs, by kind."""

    def __init__(self) -> None:
        self.costs: dict[str, float] = {}
        self._jobs: dict[str, int] = {}

    def add(self, kind: str, cost: float) -> None:
        self.costs[kind] = self.costs.get(kind, 0.0) + cost
        self._jobs[kind] = self._jobs.get(kind, 0) + 1

    def remove(self, kind: str, cost: float) -> None:
        """Take a job out again. Without jobs of the kind nothing is left of rounding errors."""
        self.costs[kind] -= cost
        self._jobs[kind] -= 1
        if not self._jobs[kind]:
            del self.costs[kind], self._jobs[kind]

    def clear(self) -> None:
        self.costs.clear()
        self._jobs.clear()
