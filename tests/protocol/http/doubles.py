"""An `HttpConnection` on a transport in memory, fed in exactly the pieces that a test chooses."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from predictors.protocol.http.connection import HttpConnection
from predictors.protocol.http.connection_limits import ConnectionLimit


class MemoryTransport(asyncio.Transport):
    """Transport that writes into memory. Like a socket's, it keeps input while reading is paused.
    The peer reads at once unless `reads` is False.
    """

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.reads = True
        self.is_closed = False
        self.is_aborted = False
        self.has_sent_eof = False
        self.is_paused = False
        self.protocol: Any = None
        self._buffered = 0
        self._kept: list[bytes] = []

    def write(self, data: Any) -> None:
        self.written += data
        if not self.reads:
            self._buffered += len(data)
            if self._buffered > 65536:
                self.protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return self._buffered

    def read_buffered(self, count: int) -> None:
        """The peer reads up to `count` of the buffered bytes."""
        self._buffered -= min(count, self._buffered)
        if self._buffered <= 16384:
            self.protocol.resume_writing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.has_sent_eof = True

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.is_aborted = True
        self.close()

    def pause_reading(self) -> None:
        assert not self.is_paused
        self.is_paused = True

    def resume_reading(self) -> None:
        assert self.is_paused
        self.is_paused = False
        kept, self._kept = self._kept, []
        for data in kept:
            asyncio.get_running_loop().call_soon(self.feed, data)

    def feed(self, data: bytes) -> None:
        """Receive these bytes from the peer."""
        if self.is_closed:
            return
        if self.is_paused:
            self._kept.append(data)
        else:
            self.protocol.data_received(data)


@dataclass(frozen=True)
class SeenRequest:
    """A request as the application received it."""

    method: str
    target: str
    body: bytes


class ConnectionUnderTest:
    """One connection with its application; created inside a running loop."""

    def __init__(self, limit: ConnectionLimit | None = None, app: Any = None) -> None:
        """`app` is an ASGI application in the place of `answer`."""
        self.seen: list[SeenRequest] = []
        self.state = ServerState()
        self.transport = MemoryTransport()
        config = uvicorn.Config(
            app or self.answer, interface="asgi3", proxy_headers=False, log_config=None
        )
        config.load()
        loop = asyncio.get_running_loop()
        self.connection = HttpConnection(
            config,
            self.state,
            {},
            loop,
            limit=limit or ConnectionLimit(1000),
            write_timeout_s=30.0,
        )
        self.transport.protocol = self.connection
        self.connection.connection_made(self.transport)

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI application that echoes the path and a hash of the body. It does not read bodies of
        /early.
        """
        body, more = b"", not scope["path"].startswith("/early")
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        target = scope["raw_path"] + (
            b"?" + scope["query_string"] if scope["query_string"] else b""
        )
        self.seen.append(SeenRequest(scope["method"], target.decode(), body))
        said = {"path": scope["path"], "sha": hashlib.sha256(body).hexdigest()[:16]}
        reply = json.dumps(said).encode()
        headers = [(b"content-length", str(len(reply)).encode())]
        status = 415 if scope["path"].startswith("/early") else 200
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": reply})

    async def feed(self, parts: Sequence[bytes], *, yields: bool = True) -> None:
        """Receive each part in one read. With `yields` the application may run in between."""
        for part in parts:
            self.transport.feed(part)
            if yields:
                await run_loop()
        await self.wait_answered()

    async def wait_answered(self) -> None:
        await run_loop()
        while self.state.tasks:
            await asyncio.wait(self.state.tasks)
            await run_loop()

    def statuses(self) -> list[int]:
        return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", self.transport.written)]

    def close(self) -> None:
        self.connection.connection_lost(None)


async def run_loop() -> None:
    """Run a few loop iterations: enough to start a request, answer it and resume reading."""
    for _ in range(6):
        await asyncio.sleep(0)


def split(raw: bytes, *cuts: int) -> list[bytes]:
    edges = [0, *sorted(cuts), len(raw)]
    return [raw[a:b] for a, b in pairwise(edges) if a < b]
