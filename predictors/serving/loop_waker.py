"""Wakes the readers of one event loop with one call for many jobs.

An engine's step has news for every job. A call into another thread's loop costs a system call and
an iteration of that loop, so it is made once until the loop has run, not once per job.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Protocol


class LoopReader(Protocol):
    """A reader that waits on an event loop."""

    def wake(self) -> None:
        """There is news. Called on the loop."""
        ...

    def on_loop_closed(self) -> None:
        """The loop is closed and runs no reader any more. Called on the thread of `notify`."""
        ...


class LoopWaker:
    """Wakes the readers of one loop. `notify` may be called on any thread and costs O(1)."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._lock = threading.Lock()
        self._notified: list[LoopReader] = []

    @staticmethod
    def of(loop: asyncio.AbstractEventLoop) -> LoopWaker:
        """The waker of `loop`, which must be the running loop of this thread."""
        waker: LoopWaker | None = getattr(_of_thread, "waker", None)
        if waker is None or waker.loop is not loop:
            waker = _of_thread.waker = LoopWaker(loop)
        return waker

    def notify(self, reader: LoopReader) -> None:
        """Have `reader.wake` called on the loop, soon and in the order of the notifications."""
        with self._lock:
            self._notified.append(reader)
            if len(self._notified) > 1 and not self.loop.is_closed():
                return  # the loop was called and has not run yet
        try:
            self.loop.call_soon_threadsafe(self._wake_all)
        except RuntimeError:  # the loop is closed, which must not end the engine thread
            for reader in self._pop_all():
                reader.on_loop_closed()

    def _wake_all(self) -> None:
        for reader in self._pop_all():
            reader.wake()

    def _pop_all(self) -> list[LoopReader]:
        with self._lock:
            notified, self._notified = self._notified, []
        return notified


_of_thread = threading.local()  # a thread runs one loop at a time
