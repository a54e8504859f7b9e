"""Ends connections whose caller takes its response too slowly or not at all.

A blocked write holds a request's place in the server. The place is freed when the caller has not
taken the least amount in time; whoever takes that much gets as much time again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

log = logging.getLogger(__name__)

MIN_BYTES_PER_S = 1024  # on average over the timeout
LOOKS = 4  # per timeout


class WriteWatch:
    """Looks at what one transport still has to send, from `begin` until `end`. Event loop only.

    A timeout of 0 is none.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.WriteTransport,
        timeout_s: float,
        stalled: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._timeout_s = timeout_s
        self._stalled = stalled
        self._least = int(MIN_BYTES_PER_S * timeout_s)
        self._size = 0  # bytes that were to be sent when the time began
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """There is something to send; called again it changes nothing."""
        if self._timer is None and self._timeout_s > 0:
            self._size = self._transport.get_write_buffer_size()
            self._since = self._loop.time()
            self._arm()

    def end(self) -> None:
        """Nothing that anybody waits for is left to send."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self._timer = self._loop.call_later(self._timeout_s / LOOKS, self._look)

    def _look(self) -> None:
        self._timer = None
        size, now = self._transport.get_write_buffer_size(), self._loop.time()
        if size == 0:
            return
        if self._size - size >= self._least:
            self._size, self._since = size, now
        elif now - self._since >= self._timeout_s:
            log.info("a caller took less than %d bytes in %g s", self._least, self._timeout_s)
            self._stalled()
            return
        self._size = max(self._size, size)
        self._arm()
