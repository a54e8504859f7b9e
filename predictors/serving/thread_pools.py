"""Two thread pools that prepare and encode: one for small work, one at lower priority for large.

Small work never waits behind large work. The pools record how long each thread has been busy, so
that liveness (`is_alive`) notices a hang.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

NICENESS = 10  # of threads for large work


class ThreadPools:
    """Two pools of `threads` each. Any thread."""

    def __init__(
        self,
        name: str,
        threads: int,
        stall_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stall_timeout_s = stall_timeout_s
        self._clock = clock
        self._busy_since: dict[int, float] = {}  # by thread
        self._small = ThreadPoolExecutor(threads, thread_name_prefix=f"{name}-prepare")
        self._large = ThreadPoolExecutor(
            threads, thread_name_prefix=f"{name}-prepare-large", initializer=_lower_priority
        )

    def submit(self, work: Callable[..., T], *args: Any, is_large: bool = False) -> Future[T]:
        """Call `work` on a thread of the pool for small or for large work."""
        pool = self._large if is_large else self._small
        return pool.submit(self._run, work, *args)

    @property
    def waiting(self) -> int:
        """Calls that no thread has begun."""
        return self._small._work_queue.qsize() + self._large._work_queue.qsize()

    @property
    def is_alive(self) -> bool:
        """False once a thread has been in one call for longer than the stall timeout."""
        oldest = min(list(self._busy_since.values()), default=None)
        return oldest is None or self._clock() - oldest <= self._stall_timeout_s

    def close(self) -> None:
        """Start no more calls. Returns at once; calls that have started go on."""
        for pool in (self._small, self._large):
            pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, work: Callable[..., T], *args: Any) -> T:
        thread = threading.get_ident()
        self._busy_since[thread] = self._clock()
        try:
            return work(*args)
        finally:
            del self._busy_since[thread]


def threads_for(cores: int) -> int:
    """Threads that prepare on a machine with this many cores.

    Half of them, since loop, engine and torch need some too; at most 8, because more would wait for
    the interpreter's lock.
    """
    return min(max(2, cores // 2), 8)


def _lower_priority() -> None:
    # on Linux niceness belongs to a thread
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
