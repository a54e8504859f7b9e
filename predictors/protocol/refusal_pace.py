"""Slows callers who ask again at once whenever they are refused.

A refusal takes a fraction of a millisecond, but thousands of them in a second take the time of the
process from the requests of others.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from predictors.errors import Overloaded, QuotaExceeded

DELAY_S = 0.25
MOST_CALLERS = 1024  # the callers that were refused last are remembered, at most so many
PACED = (Overloaded, QuotaExceeded)
"""Refusals that are delayed. A caller may cause any number of them."""


@dataclass(slots=True)
class _Level:
    left: float
    at: float


class RefusalPace:
    """Delays refusals of a caller beyond a number per second. Event loop only."""

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`per_s`: refusals of one caller that are answered at once; 0 for all."""
        self._per_s = per_s
        self._clock = clock
        self._levels: OrderedDict[str, _Level] = OrderedDict()

    async def wait(self, error: Exception, caller: str) -> None:
        """Return when `error` may be sent to the caller; at once unless it is one of `PACED`. An
        error that waits loses its traceback, whose frames hold the request's body."""
        if isinstance(error, PACED) and (delay_s := self.delay_s(caller)):
            error.__traceback__ = error.__context__ = error.__cause__ = None
            await asyncio.sleep(delay_s)

    def delay_s(self, caller: str) -> float:
        """Count a refusal, and return the seconds to wait before it is sent."""
        if not self._per_s:
            return 0.0
        now, burst = self._clock(), max(1.0, self._per_s)
        level = self._levels.pop(caller, None) or _Level(burst, now)
        self._levels[caller] = level
        if len(self._levels) > MOST_CALLERS:
            self._levels.popitem(last=False)
        level.left = min(burst, level.left + (now - level.at) * self._per_s)
        level.at = now
        if level.left < 1.0:
            return DELAY_S
        level.left -= 1.0
        return 0.0
