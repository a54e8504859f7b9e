"""A deadline that moves with every request and costs next to nothing to move; for connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Deadline:
    """Calls `passed` once the last deadline that was set is over. Event loop only.

    A later deadline leaves the loop's timer where it is: when that fires too early, it is set anew.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, passed: Callable[[], None]) -> None:
        self._loop = loop
        self._passed = passed
        self._at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def set(self, seconds: float) -> None:
        """From now on it is over in `seconds`."""
        self._at = self._loop.time() + seconds
        if self._timer is not None and self._timer_at > self._at:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._arm(self._at)

    def clear(self) -> None:
        """From now on there is none. The timer stays: most often the next deadline is later."""
        self._at = None

    def end(self) -> None:
        """There will be none any more."""
        self._at = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, at: float) -> None:
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._fired)

    def _fired(self) -> None:
        self._timer = None
        if self._at is None:
            return
        if self._loop.time() < self._at:
            self._arm(self._at)
            return
        self._at = None
        self._passed()
