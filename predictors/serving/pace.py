"""How fast jobs leave, and from that how long a full queue needs. Knows neither queue nor clock."""

from __future__ import annotations

import math

WEIGHT = 0.2  # of the newest job: the estimate follows a change of traffic within some ten jobs
MIN_RETRY_S = 1.0
MAX_RETRY_S = 60.0  # clients of OpenAI's SDK ignore a longer Retry-After
SPREAD = 0.25
GOLDEN = (math.sqrt(5) - 1) / 2


class Pace:
    """Engine seconds per job, exponentially averaged. Not thread-safe: `Roster` holds the lock."""

    def __init__(self) -> None:
        self._seconds_per_job: float | None = None
        self._refusals = 0

    def note(self, seconds_in_slot: float, sharing: int) -> None:
        """A job has left its slot, which it shared with `sharing` jobs (itself included)."""
        share = max(0.0, seconds_in_slot) / max(1, sharing)
        last = self._seconds_per_job
        self._seconds_per_job = share if last is None else last + WEIGHT * (share - last)

    def retry_after_s(self, waiting: int) -> float:
        """Seconds until `waiting` jobs will have gone, 1 to 60, each refusal up to a quarter later.

        The spread keeps those who were refused together from coming back together. It walks by the
        golden ratio, which fills the quarter evenly and needs no random numbers.
        """
        estimate = waiting * (self._seconds_per_job or 0.0)
        self._refusals += 1
        spread = 1 + SPREAD * math.fmod(self._refusals * GOLDEN, 1.0)
        return min(MAX_RETRY_S, max(MIN_RETRY_S, estimate) * spread)
