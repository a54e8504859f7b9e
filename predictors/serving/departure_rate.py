"""How long waiting jobs will take, learned from those that finished."""

from __future__ import annotations

import math
from collections import deque
from statistics import median_low

# weight of the newest job: the estimate follows a change of traffic within about ten jobs
RATE_WEIGHT = 0.2
RECENT_JOBS = 15
MAX_MEDIANS = 4.0  # answers that end early make a mean of several medians
MIN_COST = 1e-9
MIN_RETRY_S = 1.0
MAX_RETRY_S = 60.0  # clients of OpenAI's SDK ignore a longer Retry-After
SPREAD = 0.25
GOLDEN = (math.sqrt(5) - 1) / 2


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
