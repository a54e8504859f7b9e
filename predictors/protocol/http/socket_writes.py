"""Writes of all connections of an event loop, small ones together once per turn of the loop.

uvloop keeps the interpreter's lock while the kernel takes the bytes: 5 to 15 us for each write to a
reader that waits, and half of all time under the lock with 64 streams. One call of `send_each`
writes to all sockets without the lock; a call for each would have to get the lock back as often.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, MutableMapping
from contextlib import suppress

SendEach = Callable[[tuple[tuple[int, bytes], ...]], list[int]]

send_each: SendEach | None = None
with suppress(ImportError):  # installed without a compiler: transports write for themselves
    from predictors.protocol.http._send import send_each

MOST_BYTES = 16 * 1024
"""Of a write that waits for the end of the turn."""
MOST_WAITING = 64 * 1024
"""Bytes of one connection that may wait."""


class WriteBatch:
    """The connections of an event loop that have bytes for the end of this turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop, send: SendEach) -> None:
        self._loop = loop
        self._send = send
        self._waiting: list[SocketWriter] = []

    def add(self, writer: SocketWriter) -> None:
        if not self._waiting:
            self._loop.call_soon(self._send_all)
        self._waiting.append(writer)

    def _send_all(self) -> None:
        writers, self._waiting = self._waiting, []
        writes = [(writer, raw) for writer in writers if (raw := writer.take())]
        sent = self._send(tuple((writer.descriptor, raw) for writer, raw in writes))
        for (writer, raw), count in zip(writes, sent, strict=True):
            writer.finish(raw, count)


_batches: MutableMapping[asyncio.AbstractEventLoop, WriteBatch] = weakref.WeakKeyDictionary()


def batch_of(loop: asyncio.AbstractEventLoop) -> WriteBatch | None:
    """The loop's batch; None without the compiled module."""
    if send_each is None:
        return None
    if loop not in _batches:
        _batches[loop] = WriteBatch(loop, send_each)
    return _batches[loop]


class SocketWriter:
    """Writes of one connection, in their order: to the loop's batch while the transport holds no
    bytes, else to the transport. Event loop only.

    Everything that ends writing goes through here, since the transport does not know of bytes that
    wait for the end of the turn."""

    def __init__(self, transport: asyncio.Transport, batch: WriteBatch | None) -> None:
        self._transport = transport
        self._waiting: list[bytes] = []
        self._num_waiting = 0
        is_plain = transport.get_extra_info("sslcontext") is None
        socket = transport.get_extra_info("socket") if is_plain else None
        self.descriptor: int = -1 if socket is None else socket.fileno()
        self._batch = batch if self.descriptor >= 0 else None

    @property
    def unsent(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return self._num_waiting + self._transport.get_write_buffer_size()

    def write(self, raw: bytes | memoryview) -> None:
        batch, transport = self._batch, self._transport
        is_small = batch is not None and type(raw) is bytes and len(raw) <= MOST_BYTES
        if not is_small or transport.get_write_buffer_size() or transport.is_closing():
            self.flush()
            transport.write(raw)
            return
        assert batch is not None
        assert type(raw) is bytes
        if not raw:
            return
        if not self._waiting:
            batch.add(self)
        self._waiting.append(raw)
        self._num_waiting += len(raw)
        if self._num_waiting > MOST_WAITING:
            self.flush()

    def flush(self) -> None:
        """Give what waits to the transport."""
        if raw := self.take():
            self._transport.write(raw)

    def write_eof(self) -> None:
        """End the direction of this side after all bytes, if the transport can do so."""
        self.flush()
        self._batch = None  # a later write is its own connection's error
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def close(self) -> None:
        """Close after all bytes."""
        self.flush()
        self._transport.close()

    # -- `WriteBatch` ----------------------------------------------------------------------------
    def take(self) -> bytes:
        """Take out the bytes that wait. None are given if the transport is closing: its descriptor
        may be closed, and another's by now."""
        waiting = self._waiting
        if not waiting:
            return b""
        self._waiting, self._num_waiting = [], 0
        if self._transport.is_closing():
            return b""
        return waiting[0] if len(waiting) == 1 else b"".join(waiting)

    def finish(self, raw: bytes, count: int) -> None:
        """Leave to the transport what the socket did not take of `raw`. `count` is negative after
        an error, which the transport meets again if it is one."""
        if count < len(raw):
            self._transport.write(memoryview(raw)[max(0, count) :])
