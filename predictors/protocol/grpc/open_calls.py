"""The open gRPC calls: how many there may be, and how a server stops without losing one."""

from __future__ import annotations

import asyncio
import math
import time

from predictors.errors import Overloaded
from predictors.protocol.http.bodies import RETRY_AFTER_S

MOST_CALLS = 4096
"""Calls that are open at a time, of all connections. Each takes about 60 KiB and its messages."""
HOLD_S = 0.1
"""Callers who ask more often than this wait while a server tells them to go away."""
PROBES = frozenset({"ServerLive", "ServerReady", "ModelReady", "Check"})
"""Methods that are answered at that limit too."""


class OpenCalls:
    """The calls of one server, `most` at a time. Event loop only."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._num = 0
        self._began_at = -math.inf
        self._may_begin = asyncio.Event()
        self._may_begin.set()

    async def begin(self, name: str) -> Overloaded | None:
        """Count a call; the reason to refuse it, if there is one. `end` belongs to it, also if this
        is cancelled."""
        self._num += 1
        self._began_at = time.monotonic()
        if not self._may_begin.is_set():
            await self._may_begin.wait()
        if self._num <= self._most or name in PROBES:
            return None
        return Overloaded(
            f"{self._most} gRPC calls are in progress already, which is the limit; try again later",
            retry_after_s=RETRY_AFTER_S,
        )

    def end(self) -> None:
        self._num -= 1

    async def hold(self) -> bool:
        """Let calls that come wait until `release`. Returns once callers who ask again and again
        have one that waits, so that they send nothing while the server tells them to go away. False
        if there are none."""
        self._may_begin.clear()
        is_asked = time.monotonic() - self._began_at < HOLD_S
        if is_asked:
            await asyncio.sleep(HOLD_S)
        return is_asked

    def release(self) -> None:
        self._may_begin.set()
