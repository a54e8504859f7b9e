"""An amount of bytes that callers of one event loop share, waiting for their part in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class MemoryBudget:
    """`num_bytes` in all. Event loop only.

    First come, first served: a large part is not overtaken by later small ones for ever. Parts of
    0 bytes never wait.
    """

    def __init__(self, num_bytes: int) -> None:
        self.free = num_bytes
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    @asynccontextmanager
    async def hold(self, num_bytes: int) -> AsyncIterator[None]:
        """Have `num_bytes`, at most the whole, until the block ends."""
        if num_bytes:
            await self._take(num_bytes)
        try:
            yield
        finally:
            self.free += num_bytes
            self._serve()

    async def _take(self, num_bytes: int) -> None:
        if not self._waiting and num_bytes <= self.free:
            self.free -= num_bytes
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((future, num_bytes))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # given in the same moment
                self.free += num_bytes
            self._serve()
            raise

    def _serve(self) -> None:
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
