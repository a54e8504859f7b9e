"""A memory budget that the tasks of one event loop share: first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class MemoryBudget:
    """A budget of `num_bytes`. Event loop only.

    Later small parts never overtake a large one that waits. Parts of 0 bytes never wait.
    """

    def __init__(self, num_bytes: int) -> None:
        self.free = num_bytes
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    @asynccontextmanager
    async def hold(self, num_bytes: int) -> AsyncIterator[None]:
        """Wait for `num_bytes` of the budget and hold them until the block ends."""
        if num_bytes:
            await self._acquire(num_bytes)
        try:
            yield
        finally:
            self.free += num_bytes
            self._grant()

    async def _acquire(self, num_bytes: int) -> None:
        if not self._waiting and num_bytes <= self.free:
            self.free -= num_bytes
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((future, num_bytes))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # granted at the same moment
                self.free += num_bytes
            self._grant()
            raise

    def _grant(self) -> None:
        while self._waiting:
            future, num_bytes = self._waiting[0]
            if future.done():  # its caller left
                self._waiting.popleft()
                continue
            if num_bytes > self.free:
                return
            self._waiting.popleft()
            self.free -= num_bytes
            future.set_result(None)
