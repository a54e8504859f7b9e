"""When memory that answered requests have freed is given back to the system.

glibc keeps what a thread frees in that thread's arena, so that a process grows with the number of
its threads and with the sizes that have been there, though its bytes in use stay the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LARGE_BYTES = 2**20  # of one request
TRIM_AFTER_LARGE_S = 1.0
TRIM_AFTER_OTHERS_S = 10.0
"""A trim takes 12 ms of a thread with a heap of 390 MiB: a thousandth, at the most."""


class HeapTrims:
    """Calls `start_trim` soon after a large request, and within ten seconds of any other. An idle
    process is not trimmed again. Event loop only."""

    def __init__(self, start_trim: Callable[[], object]) -> None:
        self._start_trim = start_trim
        self._timer: asyncio.TimerHandle | None = None

    def answered(self, num_bytes: int) -> None:
        """A request that held so many bytes is over."""
        loop, timer = asyncio.get_running_loop(), self._timer
        seconds = TRIM_AFTER_LARGE_S if num_bytes > LARGE_BYTES else TRIM_AFTER_OTHERS_S
        if timer is not None:
            if timer.when() <= loop.time() + seconds:
                return
            timer.cancel()
        self._timer = loop.call_later(seconds, self._due)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _due(self) -> None:
        self._timer = None
        self._start_trim()
