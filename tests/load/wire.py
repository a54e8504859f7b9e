"""An HTTP/1.1 client for load: one connection is an `asyncio.Protocol` that reads one answer at a
time and keeps of it what was asked for. It can write slowly, read slowly and leave.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

# a token has come: the first chunk of a stream has an empty text
TEXT = re.compile(rb'"content":"(?!")')
TAIL_BYTES = 64
SMALL_BUFFER = 4096
"""Receive buffer of a slow reader: what it does not take stays with the server."""
SLOW_READ_S = 0.02


class Cut(Exception):
    """The connection ended, or what came is no answer."""


@dataclass(slots=True)
class Reply:
    """An answer while it arrives. Times are of `time.monotonic`."""

    done: asyncio.Future[None]
    keeps_body: bool
    is_stream: bool
    status: int = 0
    head: bytes = b""
    body: bytearray = field(default_factory=bytearray)
    num_bytes: int = 0
    tail: bytes = b""
    began_at: float = 0.0
    """When the head came."""
    first_at: float = 0.0
    """When the first text of a stream came."""

    def take(self, piece: bytes) -> None:
        """A piece of the body."""
        self.num_bytes += len(piece)
        if self.is_stream:
            if not self.first_at and TEXT.search(self.tail + piece):
                self.first_at = time.monotonic()
            self.tail = (self.tail + piece)[-TAIL_BYTES:]
        if self.keeps_body or self.status != 200:
            self.body += piece


class Wire(asyncio.Protocol):
    """One connection. Event loop."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._reply: Reply | None = None
        self._left = 0
        """Bytes of the body, or of the chunk with its line end, that are to come."""
        self._is_chunked = False
        self._is_in_body = False
        self._pause_s = 0.0
        self.is_open = False
        self.num_answers = 0

    # -- Protocol --------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self.is_open = True

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if self._reply is not None and not self._reply.done.done():
            self._reply.done.set_exception(Cut(f"connection lost: {error}"))
            self._reply.done.exception()  # it may be that nobody waits any more
        self._reply = None

    def data_received(self, data: bytes) -> None:
        if self._reply is None:
            self.close()  # an answer to nothing
            return
        self._buffer += data
        try:
            self._parse(self._reply)
        except (Cut, ValueError, IndexError) as error:
            self._fail(str(error))
        if self._pause_s and self._reply is not None and self._transport is not None:
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(self._pause_s, self._resume)

    def _resume(self) -> None:
        if self.is_open and self._transport is not None:
            self._transport.resume_reading()

    # -- requests --------------------------------------------------------------------------------
    def begin(self, *, keeps_body: bool, is_stream: bool, reads_slowly: bool = False) -> Reply:
        """Expect an answer to what is written next."""
        self._reply = Reply(asyncio.get_running_loop().create_future(), keeps_body, is_stream)
        self._pause_s = SLOW_READ_S if reads_slowly else 0.0
        return self._reply

    def write(self, parts: Sequence[bytes]) -> None:
        """Raises `Cut` on a connection that has ended."""
        if self._transport is None or not self.is_open:
            raise Cut("connection lost before the request")
        self._transport.writelines(parts)

    def leave(self, *, with_reset: bool) -> None:
        """Give the answer up."""
        if self._transport is not None and self.is_open:
            self._transport.abort() if with_reset else self._transport.close()
        self.is_open = False

    def close(self) -> None:
        self.leave(with_reset=False)

    def stop_reading(self) -> None:
        """Read nothing more, for good."""
        if self._transport is not None:
            self._transport.pause_reading()

    # -- answers ---------------------------------------------------------------------------------
    def _fail(self, why: str) -> None:
        if self._reply is not None and not self._reply.done.done():
            self._reply.done.set_exception(Cut(why))
        self._reply = None
        self.leave(with_reset=True)

    def _parse(self, reply: Reply) -> None:
        if not self._is_in_body and not self._read_head(reply):
            return
        if self._is_chunked:
            while self._read_chunk(reply):
                pass
            return
        piece = bytes(self._buffer[: self._left])
        del self._buffer[: self._left]
        self._left -= len(piece)
        reply.take(piece)
        if self._left == 0:
            self._finish(reply)

    def _read_head(self, reply: Reply) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        reply.began_at = time.monotonic()
        reply.status, reply.head = int(head[9:12]), head.lower()
        self._is_chunked = b"transfer-encoding: chunked" in reply.head
        found = re.search(rb"\r\ncontent-length: *(\d+)", reply.head)
        if not self._is_chunked and found is None:
            raise Cut("an answer without a length")
        self._left = int(found[1]) if found and not self._is_chunked else 0
        self._is_in_body = True
        return True

    def _read_chunk(self, reply: Reply) -> bool:
        """Read what there is of a chunk; False without a whole size line, or at the end."""
        buffer = self._buffer
        if self._left == 0:
            end = buffer.find(b"\r\n")
            if end < 0:
                return False
            size = int(bytes(buffer[:end]).partition(b";")[0], 16)
            if size == 0:
                if len(buffer) < end + 4:
                    return False
                buffer.clear()
                self._finish(reply)
                return False
            del buffer[: end + 2]
            self._left = size + 2
        piece = bytes(buffer[: self._left])
        del buffer[: len(piece)]
        self._left -= len(piece)
        if piece:
            # the last two bytes of a chunk are its line end
            over = 2 - self._left if self._left < 2 else 0
            reply.take(piece[: len(piece) - over])
        return bool(buffer)

    def _finish(self, reply: Reply) -> None:
        self._reply = None
        self._is_in_body = False
        self.num_answers += 1
        if b"\r\nconnection: close" in reply.head:
            self.close()
        if not reply.done.done():
            reply.done.set_result(None)


class Pool:
    """Connections from one source address to one port; those that are idle are used again."""

    def __init__(self, port: int, source: str = "127.0.0.1") -> None:
        self._port = port
        self._source = source
        self._idle: list[Wire] = []
        self.opened = 0

    async def get(self, *, is_fresh: bool = False, small_buffer: bool = False) -> Wire:
        """An idle connection, else a new one. Raises `OSError`."""
        while self._idle and not is_fresh and not small_buffer:
            wire = self._idle.pop()
            if wire.is_open:
                return wire
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if small_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        loop = asyncio.get_running_loop()
        try:
            if self._source != "127.0.0.1":
                sock.bind((self._source, 0))
            await loop.sock_connect(sock, ("127.0.0.1", self._port))
            _, wire = await loop.create_connection(Wire, sock=sock)
        except BaseException:
            sock.close()
            raise
        self.opened += 1
        return wire

    def put(self, wire: Wire) -> None:
        """Give a connection back after a whole answer."""
        if wire.is_open:
            self._idle.append(wire)

    def close(self) -> None:
        for wire in self._idle:
            wire.close()
        self._idle.clear()
