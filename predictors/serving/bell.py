"""One wake-up of an event loop for all who wait there. Knows nothing of what they wait for.

An engine's step has news for every job at once. A call into another thread's loop costs a system
call and a turn of that loop, so it is made once until the loop has looked, not once per job.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Protocol


class Sleeper(Protocol):
    """Who is woken."""

    def wake(self) -> None:
        """There is news. Called on the loop."""
        ...

    def lose(self) -> None:
        """The loop is closed, nobody will look. Called on the thread that rang."""
        ...


class Bell:
    """Wakes sleepers of one loop. `ring` from any thread, costs O(1)."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._lock = threading.Lock()
        self._rung: list[Sleeper] = []

    @staticmethod
    def of(loop: asyncio.AbstractEventLoop) -> Bell:
        """The bell of `loop`, which must be the one that runs in this thread."""
        bell: Bell | None = getattr(_here, "bell", None)
        if bell is None or bell.loop is not loop:
            bell = _here.bell = Bell(loop)
        return bell

    def ring(self, sleeper: Sleeper) -> None:
        """Have `sleeper.wake` called on the loop, soon and in the order of ringing."""
        with self._lock:
            self._rung.append(sleeper)
            if len(self._rung) > 1 and not self.loop.is_closed():
                return  # the loop was called and has not looked yet
        try:
            self.loop.call_soon_threadsafe(self._wake_all)
        except RuntimeError:  # it is closed, and the engine's thread must not die of it
            for lost in self._take():
                lost.lose()

    def _wake_all(self) -> None:
        for sleeper in self._take():
            sleeper.wake()

    def _take(self) -> list[Sleeper]:
        with self._lock:
            rung, self._rung = self._rung, []
        return rung


_here = threading.local()  # a thread runs one loop at a time
