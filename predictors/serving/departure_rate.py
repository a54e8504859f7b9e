"""Estimates how fast jobs leave the engine, and from that the Retry-After of a full queue."""

from __future__ import annotations

import math

WEIGHT = 0.2  # of the newest job: the estimate follows a change of traffic within some ten jobs
MIN_RETRY_S = 1.0
MAX_RETRY_S = 60.0  # clients of OpenAI's SDK ignore a longer Retry-After
SPREAD = 0.25
GOLDEN = (math.sqrt(5) - 1) / 2


class DepartureRate:
    """Average engine seconds per job, exponential. Not thread-safe: `JobTable` holds the lock."""

    def __init__(self) -> None:
        self._seconds_per_job: float | None = None
        self._refusals = 0

    def observe(self, seconds_in_slot: float, num_running: int) -> None:
        """Count a finished job, which ran beside others: `num_running` jobs, itself included."""
        share = max(0.0, seconds_in_slot) / max(1, num_running)
        last = self._seconds_per_job
        self._seconds_per_job = share if last is None else last + WEIGHT * (share - last)

    def retry_after_s(self, waiting: int) -> float:
        """Estimate the seconds until `waiting` jobs have left, 1 to 60, plus a spread.

        Each refusal gets up to a quarter more, so that callers who were refused together do not
        come back together. Steps of the golden ratio fill the quarter evenly without random
        numbers.
        """
        estimate = waiting * (self._seconds_per_job or 0.0)
        self._refusals += 1
        spread = 1 + SPREAD * math.fmod(self._refusals * GOLDEN, 1.0)
        return min(MAX_RETRY_S, max(MIN_RETRY_S, estimate) * spread)
