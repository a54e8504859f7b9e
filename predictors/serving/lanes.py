"""Threads that prepare and encode: a few for small work, as many at lower priority for large work.

Small work never waits behind large work. How long each thread has been busy is known, so that a
hang is noticed: liveness asks `is_alive`.
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


class Lanes:
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
        self._began: dict[int, float] = {}  # by thread
        self._small = ThreadPoolExecutor(threads, thread_name_prefix=f"{name}-prepare")
        self._large = ThreadPoolExecutor(
            threads, thread_name_prefix=f"{name}-prepare-large", initializer=_lower_priority
        )

    def submit(self, work: Callable[..., T], *args: Any, is_large: bool = False) -> Future[T]:
        """Run `work` on a thread."""
        pool = self._large if is_large else self._small
        return pool.submit(self._run, work, *args)

    @property
    def is_alive(self) -> bool:
        """False once a thread has been inside one piece of work for the stall timeout."""
        oldest = min(list(self._began.values()), default=None)
        return oldest is None or self._clock() - oldest <= self._stall_timeout_s

    def close(self) -> None:
        """Start nothing more; what runs goes on."""
        for pool in (self._small, self._large):
            pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, work: Callable[..., T], *args: Any) -> T:
        me = threading.get_ident()
        self._began[me] = self._clock()
        try:
            return work(*args)
        finally:
            del self._began[me]


def _lower_priority() -> None:
    # on Linux niceness is a thread's own
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
