"""Reads the body of a REST request within limits on its size, the memory of all bodies, pace and
time.

A body of up to 1 MiB is `bytes`. A larger one is written to shared memory as it arrives, from where
a worker process reads it. The server process never holds it, and closing it frees the memory at
once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from predictors import metrics
from predictors.errors import Cancelled, DeadlineExceeded, Overloaded, TooLarge
from predictors.workers.shared_memory import SharedMemory

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Body = bytes | SharedMemory

INLINE_BYTES = 64 * 1024  # largest body that is parsed on the event loop; it is not counted
SHARED_BYTES = 2**20  # a larger body is parsed by a worker process instead of a thread
BODY_TIMEOUT_S = 60.0  # for the whole body, after its head
PIECE_BYTES = 64 * 1024  # that must arrive within each `server.body_timeout_s`
RETRY_AFTER_S = 2.0
_BODY_TIMEOUT_MESSAGE = f"the body took longer than {BODY_TIMEOUT_S:g} s"


class BytesInFlight:
    """Bytes that all large requests hold together, with a limit: bodies that arrive, and the values
    decoded from them until the response is sent. Event loop only.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.used = 0

    def add(self, num_bytes: int) -> None:
        """Add `num_bytes`. Raises `Overloaded` above the limit."""
        if self.used + num_bytes > self._limit:
            raise Overloaded(
                f"requests hold {self.used} bytes already, and at most {self._limit} are taken "
                "from all callers together; try again later",
                retry_after_s=RETRY_AFTER_S,
            )
        self.used += num_bytes
        metrics.request_bytes_in_flight.set(self.used)

    def remove(self, num_bytes: int) -> None:
        self.used -= num_bytes
        metrics.request_bytes_in_flight.set(self.used)


class Charge:
    """One request's share of `BytesInFlight`. The first `INLINE_BYTES` are free, so that small
    requests pass while large ones use up the limit.
    """

    def __init__(self, total: BytesInFlight) -> None:
        self._total = total
        self._seen = 0
        self.num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Charge bytes that have arrived. Raises `Overloaded`."""
        self._seen += num_bytes
        due = max(0, self._seen - INLINE_BYTES) - self.num_bytes
        if due > 0:
            self._total.add(due)
            self.num_bytes += due

    def close(self) -> None:
        """Release the charge. Idempotent."""
        if self.num_bytes:
            self._total.remove(self.num_bytes)
            self.num_bytes = 0


async def receive_small_body(
    receive: Receive, headers: Mapping[str, str], limit: int, timeout_s: float
) -> bytes:
    """Receive a body of at most `limit` bytes within `timeout_s`. `limit` is less than
    `SHARED_BYTES`.
    """
    async with fail_at(time.monotonic() + timeout_s, slow_body_message(timeout_s)):
        raw = await receive_body(receive, headers, limit)
    assert isinstance(raw, bytes)
    return raw


async def receive_body(
    receive: Receive,
    headers: Mapping[str, str],
    limit: int,
    *,
    make_charge: Callable[[], Charge] | None = None,
    piece_timeout_s: float = BODY_TIMEOUT_S,
) -> Body:
    """Receive the whole body of an ASGI request. Buffers at most `limit` bytes and one chunk.

    Raises `TooLarge` (before reading if Content-Length exceeds the limit), `Cancelled` when the
    client disconnects, `Overloaded` when all bodies together hold too many bytes, and
    `DeadlineExceeded` when 64 KiB take longer than `piece_timeout_s` or the whole body longer than
    a minute.
    """
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise _too_large(limit)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if len(body) <= INLINE_BYTES:
            return body
    charge = None if make_charge is None else make_charge()
    async with fail_at(time.monotonic() + BODY_TIMEOUT_S, _BODY_TIMEOUT_MESSAGE):
        return await _read_rest(message, receive, limit, charge, piece_timeout_s)


async def _read_rest(
    message: MutableMapping[str, Any],
    receive: Receive,
    limit: int,
    charge: Charge | None,
    piece_timeout_s: float,
) -> Body:
    loop = asyncio.get_running_loop()
    small, large = bytearray(), None
    size = due = 0
    try:
        async with asyncio.timeout(piece_timeout_s) as piece:
            while True:
                if message["type"] == "http.disconnect":
                    raise Cancelled("the caller left while sending the body")
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                if charge is not None:
                    charge.add(len(chunk))
                if large is None and size > SHARED_BYTES:
                    large = SharedMemory.empty()
                    large.append(small)
                if large is None:
                    small += chunk
                else:
                    large.append(chunk)
                if not message.get("more_body", False):
                    return bytes(small) if large is None else large
                if size >= due + PIECE_BYTES:
                    due = size
                    piece.reschedule(loop.time() + piece_timeout_s)
                message = await receive()
    except TimeoutError as error:
        raise DeadlineExceeded(slow_body_message(piece_timeout_s)) from error
    except BaseException:
        if large is not None:
            large.close()  # now: an exception keeps its frames alive for a while
        raise


@asynccontextmanager
async def fail_at(deadline: float | None, message: str) -> AsyncIterator[None]:
    """Cancel the block at `deadline` (`time.monotonic()` seconds) with `DeadlineExceeded`."""
    left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
    try:
        async with asyncio.timeout(left_s):
            yield
    except TimeoutError as error:
        raise DeadlineExceeded(message) from error


def slow_body_message(seconds: float) -> str:
    """The error message for a piece of the body that arrived too slowly."""
    return f"{PIECE_BYTES // 1024} KiB of the body took longer than {seconds:g} s"


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is larger than the limit of {limit} bytes")
