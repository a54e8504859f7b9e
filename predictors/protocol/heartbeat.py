"""Shows other threads whether the event loop that answers callers still turns.

The health port has a thread of its own, so a probe is answered while the loop of the data port
hangs. Without this a pod whose loop never returns would stay live.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

BEAT_S = 1.0
STALL_S = 30.0
"""A loop that has not turned for so long counts as hung."""


class Heartbeat:
    """The last moment at which an event loop turned. `start` and `stop`: on that loop; the rest:
    any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at_s: float | None = None
        self._next: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Beat every second from now on."""
        self._at_s = self._clock()
        self._next = asyncio.get_running_loop().call_later(BEAT_S, self.start)

    def stop(self) -> None:
        """Beat no more; a loop that is not watched is not stalled."""
        if self._next is not None:
            self._next.cancel()
        self._at_s = None

    @property
    def is_stalled(self) -> bool:
        """True if the loop has not turned for `STALL_S`."""
        at_s = self._at_s
        return at_s is not None and self._clock() - at_s > STALL_S
