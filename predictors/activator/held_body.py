"""The body of an HTTP request that may be held: read ahead within the bounds of the waiting room,
then streamed to the model.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from predictors.activator.waking import WaitingRoom
from predictors.errors import Cancelled, DeadlineExceeded, Overloaded
from predictors.protocol.http.bodies import Receive

JOINED_BYTES = 64 * 1024
"""A held part that is smaller is joined with the next one."""


class HeldBody:
    """One request's body. Event loop only; one task reads at a time.

    While the request is held the body is read into memory, because a connection that is not read
    does not show that its caller has left. `timeout_s` bounds the wait for each part; 0 does not.
    """

    def __init__(self, receive: Receive, room: WaitingRoom, timeout_s: float) -> None:
        self._receive = receive
        self._room = room
        self._timeout_s = timeout_s
        self._parts: deque[bytearray] = deque()
        self._has_more = True
        self._failure: Overloaded | None = None
        self.was_sent = asyncio.Event()
        """Every byte was taken by the reader of `stream`."""

    async def read_ahead(self) -> None:
        """Read until the caller leaves, which raises `Cancelled`. Raises `Overloaded` if the body
        does not fit, and `DeadlineExceeded` if it stops coming. May be cancelled at any time."""
        while self._has_more:
            part = await self._next_part()
            if part:
                self._charge(len(part))
                self._hold(part)
        await self.until_left()

    async def until_left(self) -> None:
        """Wait until the caller leaves; raises `Cancelled`. The body must have been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass  # an empty part after the last one
        raise Cancelled("the caller left")

    async def stream(self) -> AsyncIterator[bytes]:
        """The whole body, once, in parts. Raises as `read_ahead`, for its size only if that has."""
        if self._failure is not None:
            raise self._failure
        while self._parts:
            held = self._parts.popleft()
            self._room.release(len(held))
            yield bytes(held)
        while self._has_more:
            if part := await self._next_part():
                yield part
        self.was_sent.set()

    def drop(self) -> None:
        """Forget what was read ahead and not streamed."""
        self._room.release(sum(map(len, self._parts)))
        self._parts.clear()

    def _charge(self, num_bytes: int) -> None:
        """A part that does not fit is lost. The wait may have ended meanwhile without reading this
        error, and the body must not be passed on without the part."""
        try:
            self._room.charge(num_bytes)
        except Overloaded as error:
            self._failure = error
            raise

    def _hold(self, part: bytes) -> None:
        """Keep `part`. An object for each part of two bytes would take thirty times its bytes."""
        if self._parts and len(self._parts[-1]) < JOINED_BYTES:
            self._parts[-1] += part
        else:
            self._parts.append(bytearray(part))

    async def _next_part(self) -> bytes:
        try:
            async with asyncio.timeout(self._timeout_s or None):
                message = await self._receive()
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"nothing of the request's body came for {self._timeout_s:g} s; send it faster"
            ) from error
        if message["type"] == "http.disconnect":
            raise Cancelled("the caller left before the end of the body")
        self._has_more = message.get("more_body", False)
        part: bytes = message.get("body", b"")
        return part
