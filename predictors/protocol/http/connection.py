"""One HTTP/1 connection: finds where each message begins and ends, and runs one request at a time.

The next head is parsed only after the previous message was read to its end and its response was
written. So no byte of a body is ever taken for a head, even if the application answered early. A
connection that cannot safely be read further is closed after the response, and reads on for a
limited time first, so that the client receives the response.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Iterable
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.utils import get_local_addr, get_remote_addr
from uvicorn.server import ServerState

from predictors.protocol.http.connection_limits import (
    Connection,
    ConnectionDeadline,
    ConnectionLimit,
    SlowReaderTimeout,
)
from predictors.protocol.http.cycle import WRITER, RequestCycle, refusal, scope_of
from predictors.protocol.http.parsing import (
    BadChunk,
    BadHead,
    ChunkedBody,
    Head,
    HeadParser,
    SizedBody,
)
from predictors.protocol.http.socket_writes import SocketWriter, batch_of

log = logging.getLogger(__name__)

HEAD_TIMEOUT_S = 30.0
MAX_BUFFERED_BYTES = 64 * 1024  # of a body or pipelined requests; reading stops above this
DISCARD_BYTES = 2**20  # of a body after an early response; a larger one ends the connection
DISCARD_S = 10.0
LINGER_BYTES = 16 * 2**20  # of a body after the last response: clients may write before they read
LINGER_S = 2.0
TLS_CLOSE_S = 65.0  # for what is encrypted already, which is not counted as unsent: 64 KiB at most


class Stage(enum.Enum):
    """The part of a message that the next byte belongs to."""

    HEAD = enum.auto()
    BODY = enum.auto()
    NEXT = enum.auto()  # a pipelined request; not parsed before the current one is answered
    CLOSING = enum.auto()  # no further request is accepted; input is discarded


class HttpConnection(asyncio.Protocol):
    """asyncio protocol of one socket, created by uvicorn's server. Runs the ASGI application for
    each request. `handshake` is the one that it follows, for TLS. Event loop only."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limit: ConnectionLimit,
        write_timeout_s: float,
        handshake: Connection | None = None,
    ) -> None:
        self._app = config.loaded_app
        self._keep_alive_s = config.timeout_keep_alive
        self._server = server_state
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._writer: SocketWriter = None  # type: ignore[assignment]
        self._handshake = handshake
        self._addresses: tuple[Any, Any] = (None, None)  # local and remote
        self._stage = Stage.HEAD
        self._unread = bytearray()
        self._head_parser = HeadParser()
        self._body: SizedBody | ChunkedBody = SizedBody(0)
        self._discarded = 0  # bytes read and dropped since the request or the close began
        self._discard_limit = DISCARD_BYTES  # abort above this many
        self._cycle: RequestCycle | None = None
        self._is_read_paused = False
        self._is_decoding_paused = False  # until the next loop iteration, in a body of tiny chunks
        self.is_write_paused = False
        self._writable = asyncio.Event()
        self._deadline = ConnectionDeadline(self._loop, self._deadline_passed)
        self._limit = limit
        self._write_timeout_s = write_timeout_s
        self._slow_reader: SlowReaderTimeout = None  # type: ignore[assignment]

    # -- asyncio ---------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._server.connections.add(self)  # type: ignore[arg-type]
        self._transport = transport
        self._writer = SocketWriter(transport, batch_of(self._loop))
        self._addresses = get_local_addr(transport), get_remote_addr(transport)
        if self._handshake is not None:
            self._limit.remove(self._handshake)
        self._slow_reader = SlowReaderTimeout(
            self._loop, transport, self._write_timeout_s, transport.abort
        )
        self._deadline.set(HEAD_TIMEOUT_S)
        if not self._limit.add(self):
            self._refuse_over_limit()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._limit.remove(self)
        self._stage, self._body = Stage.CLOSING, SizedBody(0)
        self._deadline.end()
        self._slow_reader.stop()
        self._unread.clear()
        self._writable.set()
        self._disconnect()

    def data_received(self, data: bytes) -> None:
        body = self._body
        if isinstance(body, SizedBody) and len(data) < body.left and not self._unread:
            body.left -= len(data)  # fast path of a large body: saves one copy
            self._add_body(data)
            return
        self._unread += data
        self._parse_unread()

    def pause_writing(self) -> None:
        self.is_write_paused = True
        self._writable.clear()
        self._slow_reader.start()

    def resume_writing(self) -> None:
        self.is_write_paused = False
        self._writable.set()
        if not self._transport.is_closing():
            self._slow_reader.stop()

    def abort(self) -> None:
        self._transport.abort()

    def shutdown(self) -> None:
        """Accept no further request. Called by uvicorn when the server shuts down."""
        if self._cycle is None or self._cycle.is_complete:
            self._close_now(LINGER_S)
        else:
            self._cycle.keeps_alive = False

    # -- reading ---------------------------------------------------------------------------------
    def _parse_unread(self) -> None:
        while self._unread and not self._is_decoding_paused:
            stage = self._stage
            if stage is Stage.HEAD:
                if not self._read_head():
                    break
            elif stage is Stage.BODY:
                if not self._read_body():
                    break
            elif stage is Stage.CLOSING:
                self._discard(len(self._unread))
                self._unread.clear()
            else:
                break
        self._update_reading()

    def _read_head(self) -> bool:
        """Parse the next head and start its request. False if it is incomplete or refused."""
        try:
            head = self._head_parser.next_head(self._unread)
        except BadHead as error:
            self._refuse(error.status, error.message)
            return False
        if head is None:
            if self._unread and self._cycle is not None and self._cycle.is_complete:
                self._cycle = None  # the connection is no longer idle
                self._deadline.set(HEAD_TIMEOUT_S)
            return False
        self._deadline.clear()
        if not self._limit.start_request(self, head):
            self._refuse_over_limit()
            return False
        self._start_request(head)
        return True

    def _read_body(self) -> bool:
        """Decode buffered body bytes. False if more must arrive, or decoding waits for the loop."""
        before = len(self._unread)
        cycle = self._cycle
        assert cycle is not None
        try:
            body, self._is_decoding_paused = self._body.decode(self._unread)
        except BadChunk as error:
            self._break_off(cycle, 400, error.message)
            return False
        if self._is_decoding_paused:
            self._loop.call_soon(self._resume_decoding)
        is_last = self._body.is_complete
        if body or is_last:
            self._add_body(body, is_last=is_last)
        return len(self._unread) < before

    def _resume_decoding(self) -> None:
        self._is_decoding_paused = False
        self._parse_unread()

    def _add_body(self, body: bytes, *, is_last: bool = False) -> None:
        cycle = self._cycle
        assert cycle is not None
        if is_last:
            self._stage = Stage.NEXT
            cycle.more_body = False
        if cycle.is_complete:
            self._discard(len(body))
            if is_last:
                self._wait_for_head()
            return
        cycle.body += body
        cycle.event.set()
        if len(cycle.body) > MAX_BUFFERED_BYTES:
            self._update_reading()

    def _discard(self, count: int) -> None:
        self._discarded += count
        if self._discarded > self._discard_limit:
            self._transport.abort()

    def _update_reading(self) -> None:
        stops = self._is_decoding_paused
        if self._cycle is not None and self._stage is not Stage.CLOSING:
            held = max(len(self._unread), len(self._cycle.body))
            stops = stops or held > MAX_BUFFERED_BYTES
        if stops != self._is_read_paused and not self._transport.is_closing():
            self._is_read_paused = stops
            (self._transport.pause_reading if stops else self._transport.resume_reading)()

    # -- requests --------------------------------------------------------------------------------
    def _start_request(self, head: Head) -> None:
        cycle = self._cycle = RequestCycle(self, head)
        self._discarded, self._discard_limit = 0, DISCARD_BYTES
        if head.is_chunked or head.content_length:
            self._stage = Stage.BODY
            self._body = ChunkedBody() if head.is_chunked else SizedBody(head.content_length)
        else:
            self._stage = Stage.NEXT
            cycle.more_body = cycle.is_asked_to_continue = False
            cycle.event.set()
        scope = scope_of(head, *self._addresses, self._app_state.copy())
        scope["extensions"] = {WRITER: cycle}
        if self._handshake is not None:
            scope["scheme"] = "https"
        task = self._loop.create_task(self._app(scope, cycle.receive, cycle.send))
        self._server.tasks.add(task)
        task.add_done_callback(partial(self._request_ended, cycle))

    def _request_ended(self, cycle: RequestCycle, task: asyncio.Task[None]) -> None:
        """Task callback: an application that returned without a complete response gets a 500."""
        self._server.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("the application failed", exc_info=task.exception())
        if not cycle.is_complete and not cycle.is_disconnected:
            self._break_off(cycle, 500, "internal error")

    def _wait_for_head(self) -> None:
        """Wait for the next request after the previous one was read and answered."""
        self._stage = Stage.HEAD
        self._limit.end_request(self)
        self._deadline.set(self._keep_alive_s)

    # -- `CycleConnection` -----------------------------------------------------------------------
    def write(self, raw: bytes | memoryview) -> None:
        self._writer.write(raw)

    async def wait_writable(self) -> None:
        await self._writable.wait()

    def default_headers(self) -> Iterable[tuple[bytes, bytes]]:
        return self._server.default_headers

    def can_keep_alive(self) -> bool:
        if self._stage is Stage.NEXT:
            return True
        if self._stage is not Stage.BODY or (self._cycle and self._cycle.is_asked_to_continue):
            return False  # without `100 Continue` the client may or may not send the body
        return isinstance(self._body, SizedBody) and self._body.left <= DISCARD_BYTES

    def body_consumed(self) -> None:
        if self._is_read_paused:
            self._update_reading()

    def response_complete(self) -> None:
        cycle = self._cycle
        assert cycle is not None
        cycle.body = bytearray()
        if self._transport.is_closing():
            return
        self._writer.flush()
        if not self._transport.get_write_buffer_size():
            # answered: the rest of its body, if any, keeps no place from others
            self._limit.end_request(self)
        if not cycle.keeps_alive:
            self._close()
        elif self._stage is Stage.NEXT:
            self._wait_for_head()
            if self._unread:
                self._parse_unread()
        else:
            self._deadline.set(DISCARD_S)
        self._update_reading()

    # -- closing ---------------------------------------------------------------------------------
    def _refuse(self, status: int, message: str, *headers: bytes) -> None:
        """Send an error response and close. No response may be in progress."""
        self._writer.write(refusal(status, message, *headers))
        self._limit.end_request(self)
        self._linger()

    def _refuse_over_limit(self) -> None:
        self._refuse(
            503, "the server has no place for another request; try again", b"retry-after: 1"
        )

    def _break_off(self, cycle: RequestCycle, status: int, message: str) -> None:
        """End the current request when the end of its body or response is unknown."""
        is_started = cycle.is_written
        self._disconnect()
        if is_started:
            self._writer.flush()
            self._transport.abort()  # a regular end would make the partial response look complete
        else:
            self._refuse(status, message)

    def _disconnect(self) -> None:
        if self._cycle is not None:
            self._cycle.is_disconnected = True
            self._cycle.event.set()

    def _close(self) -> None:
        """Close after everything is written. Read on if the client may still be sending."""
        if self._stage is Stage.NEXT and not self._unread:
            self._close_now()
        else:
            self._linger()

    def _close_now(self, linger_s: float = TLS_CLOSE_S) -> None:
        """Close after everything is written, within the slow reader's timeout."""
        self._writer.close()
        self._slow_reader.start()
        if self._handshake is not None:  # the client may never answer the end of TLS
            self._stage = Stage.CLOSING
            self._deadline.set(linger_s)

    def _linger(self) -> None:
        """Discard input for a while. Closing a socket with unread bytes sends a reset, and the
        client would lose the response."""
        self._discarded = 0
        self._discard_limit = LINGER_BYTES if self._stage is Stage.BODY else DISCARD_BYTES
        self._stage, self._body = Stage.CLOSING, SizedBody(0)
        self._unread.clear()
        self._update_reading()
        self._writer.write_eof()
        self._deadline.set(LINGER_S)

    def _deadline_passed(self) -> None:
        if self._stage is Stage.HEAD and self._cycle is None:
            self._refuse(408, f"the request's head took longer than {HEAD_TIMEOUT_S:g} s")
        elif self._stage is not Stage.CLOSING:
            self._close_now()
        elif self._writer.unsent:
            self._deadline.set(LINGER_S)  # the client is still reading the response
            self._slow_reader.start()
        else:
            self._transport.abort()
