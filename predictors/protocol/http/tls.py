"""A listening socket for HTTP over TLS: accepts connections and shakes hands with their clients.

A connection counts from its acceptance, so clients that connect and say nothing are bounded in
number like any others, and in time. A request in plain HTTP is told to use https; everything else
that is not TLS, or has no valid client certificate where one is needed, is closed.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from functools import partial

from predictors import metrics
from predictors.protocol.certificates import Certificates
from predictors.protocol.http.connection import HttpConnection
from predictors.protocol.http.connection_limits import ConnectionLimit
from predictors.protocol.http.cycle import refusal

log = logging.getLogger(__name__)

HANDSHAKE_S = 10.0
CLOSE_S = 3600.0  # for the last bytes of an answer; `HttpConnection` ends a slow reader long before
ACCEPTS = 16  # connections per iteration of the event loop
FULL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
PAUSE_S = 1.0  # after one of these, as asyncio's own servers do
HANDSHAKE_RECORD = b"\x16"  # the first byte of a TLS connection


class TlsListener:
    """Accepts connections of `listener` until it is closed. Event loop only.

    `make_connection` makes the HTTP connection that follows a handshake.
    """

    def __init__(
        self,
        listener: socket.socket,
        make_connection: Callable[..., HttpConnection],
        certificates: Certificates,
        limit: ConnectionLimit,
    ) -> None:
        self._listener = listener
        self._make_connection = make_connection
        self._certificates = certificates
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[_Handshake] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._start()

    def _start(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """Accept no more, and end the handshakes that have begun. Connections stay."""
        self._loop.remove_reader(self._listener.fileno())
        if self._pause is not None:
            self._pause.cancel()
        for handshake in list(self._handshakes):
            handshake.abort()

    async def wait_closed(self) -> None:
        await asyncio.gather(*(each.task for each in self._handshakes), return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                accepted, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in FULL:
                    raise
                log.error("no HTTPS connection can be accepted: %s", error.strerror)
                self._loop.remove_reader(self._listener.fileno())
                self._pause = self._loop.call_later(PAUSE_S, self._start)
                return
            accepted.setblocking(False)
            handshake = _Handshake(accepted, self._make_connection, self._certificates)
            self._handshakes.add(handshake)
            handshake.task.add_done_callback(partial(self._ended, handshake))
            if not self._limit.add(handshake):
                handshake.abort()  # nothing can be said before the handshake

    def _ended(self, handshake: _Handshake, task: asyncio.Task[None]) -> None:
        if not handshake.is_complete:
            handshake.accepted.close()
        self._handshakes.discard(handshake)
        self._limit.remove(handshake)


class _Handshake:
    """The handshake of one connection, as a task. Event loop only."""

    def __init__(
        self,
        accepted: socket.socket,
        make_connection: Callable[..., HttpConnection],
        certificates: Certificates,
    ) -> None:
        self.accepted = accepted
        self.is_complete = False
        self._make_connection = make_connection
        self._certificates = certificates
        self._loop = asyncio.get_running_loop()
        self.task = self._loop.create_task(self._run())

    def abort(self) -> None:
        self.task.cancel()

    async def _run(self) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                first = await self._first_byte()
                if not first:
                    return  # a load balancer's look
                if first != HANDSHAKE_RECORD:
                    self._refuse(first)
                    raise ConnectionAbortedError("no TLS")
                await self._loop.connect_accepted_socket(
                    self._make_http,
                    self.accepted,
                    ssl=self._certificates.context,
                    ssl_handshake_timeout=HANDSHAKE_S,
                    ssl_shutdown_timeout=CLOSE_S,
                )
        except (OSError, TimeoutError) as error:  # TLS errors and resets are `OSError`s
            metrics.tls_handshake_failures_total.inc()
            log.debug("a TLS handshake failed: %s", error)
        else:
            self.is_complete = True

    def _make_http(self) -> HttpConnection:
        return self._make_connection(handshake=self)

    async def _first_byte(self) -> bytes:
        """Wait for the first byte, which stays unread; empty if the client closes."""
        arrived, descriptor = asyncio.Event(), self.accepted.fileno()
        self._loop.add_reader(descriptor, arrived.set)
        try:
            await arrived.wait()
        finally:
            self._loop.remove_reader(descriptor)
        return self.accepted.recv(1, socket.MSG_PEEK)

    def _refuse(self, first: bytes) -> None:
        """Answer a request in plain HTTP, which begins with a letter."""
        if first.isalpha():
            self.accepted.recv(65536)  # closing with unread bytes would lose the answer
            self.accepted.send(refusal(400, "this port speaks TLS; use https"))
