"""One HTTP/1 connection: where each message begins and ends, one request at a time. Heads are
parsed in `http_heads`, bodies in `http_bodies`.

uvicorn's server makes one per accepted socket. The next head is only looked at when the message
before it was read to its end and its response was written, so no byte of a body is ever taken for a
head, whatever the application has answered meanwhile. A connection that can't be read on safely is
closed: after the response, and after reading on for a while, so that the caller gets to see it.
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
    ConnectionDeadline,
    ConnectionLimit,
    SlowReaderTimeout,
)
from predictors.protocol.http.cycle import RequestCycle, refusal, scope_of
from predictors.protocol.http.parsing import (
    BadChunk,
    BadHead,
    ChunkedBody,
    Head,
    HeadParser,
    SizedBody,
)

log = logging.getLogger(__name__)

HEAD_TIMEOUT_S = 30.0
HELD_BYTES = 64 * 1024  # of a body nobody has taken, or of pipelined requests: then reading stops
DISCARD_BYTES = 2**20  # of a body behind an early response, else the connection ends with it
DISCARD_S = 10.0
LINGER_BYTES = 16 * 2**20  # of a body behind a last response: its caller may write before it reads
LINGER_S = 2.0


class Stage(enum.Enum):
    """The part of a message that the next byte belongs to."""

    HEAD = enum.auto()
    BODY = enum.auto()
    NEXT = enum.auto()  # the next request, not looked at before this one is answered
    CLOSING = enum.auto()  # nothing: no request is taken any more


class HttpConnection(asyncio.Protocol):
    """Event loop only."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        places: ConnectionLimit,
        write_timeout_s: float,
    ) -> None:
        self._app = config.loaded_app
        self._keep_alive_s = config.timeout_keep_alive
        self._server = server_state
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._addresses: tuple[Any, Any] = (None, None)  # ours and the caller's
        self._stage = Stage.HEAD
        self._unread = bytearray()
        self._heads = HeadParser()
        self._body: SizedBody | ChunkedBody = SizedBody(0)
        self._thrown = 0  # bytes that were read and thrown away
        self._throws = DISCARD_BYTES  # how many may be
        self._cycle: RequestCycle | None = None
        self._is_read_paused = False
        self._is_held = False  # the rest of a body in tiny chunks waits for the loop's next turn
        self.is_write_paused = False
        self._writable = asyncio.Event()
        self._deadline = ConnectionDeadline(self._loop, self._too_slow)
        self._places = places
        self._write_timeout_s = write_timeout_s
        self._writes: SlowReaderTimeout = None  # type: ignore[assignment]

    # -- asyncio ---------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._server.connections.add(self)  # type: ignore[arg-type]
        self._transport = transport
        self._addresses = get_local_addr(transport), get_remote_addr(transport)
        self._writes = SlowReaderTimeout(
            self._loop, transport, self._write_timeout_s, transport.abort
        )
        self._deadline.set(HEAD_TIMEOUT_S)
        if not self._places.enter(self):
            self._turn_away()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that its caller has gone."""
        self._server.connections.discard(self)
        self._places.leave(self)
        self._stage, self._body = Stage.CLOSING, SizedBody(0)
        self._deadline.end()
        self._writes.end()
        self._unread.clear()
        self._writable.set()
        self._disconnect()

    def data_received(self, data: bytes) -> None:
        """Take what came as far as the present message goes, and keep the rest."""
        body = self._body
        if isinstance(body, SizedBody) and len(data) < body.left and not self._unread:
            body.left -= len(data)  # most of a large body comes this way, and is not copied twice
            self._add_body(data)
            return
        self._unread += data
        self._read_on()

    def pause_writing(self) -> None:
        self.is_write_paused = True
        self._writable.clear()
        self._writes.begin()

    def resume_writing(self) -> None:
        self.is_write_paused = False
        self._writable.set()
        if not self._transport.is_closing():
            self._writes.end()

    def abort(self) -> None:
        self._transport.abort()

    def shutdown(self) -> None:
        """uvicorn's word for: no further request."""
        if self._cycle is None or self._cycle.is_complete:
            self._close_now()
        else:
            self._cycle.keeps_alive = False

    # -- reading ---------------------------------------------------------------------------------
    def _read_on(self) -> None:
        while self._unread and not self._is_held:
            stage = self._stage
            if stage is Stage.HEAD:
                if not self._read_head():
                    break
            elif stage is Stage.BODY:
                if not self._read_body():
                    break
            elif stage is Stage.CLOSING:
                self._throw(len(self._unread))
                self._unread.clear()
            else:
                break
        self._pace()

    def _read_head(self) -> bool:
        """Begin the next request; False if its head is not whole, or no good."""
        try:
            head = self._heads.take(self._unread)
        except BadHead as error:
            self._refuse(error.status, error.message)
            return False
        if head is None:
            if self._unread and self._cycle is not None and self._cycle.is_complete:
                self._cycle = None  # the connection is not idle any more
                self._deadline.set(HEAD_TIMEOUT_S)
            return False
        self._deadline.clear()
        if not self._places.begin(self, head):
            self._turn_away()
            return False
        self._begin(head)
        return True

    def _read_body(self) -> bool:
        """Take what there is of it; False if the rest has not come or must wait for the loop."""
        before = len(self._unread)
        cycle = self._cycle
        assert cycle is not None
        try:
            body, self._is_held = self._body.take(self._unread)
        except BadChunk as error:
            self._break_off(cycle, 400, error.message)
            return False
        if self._is_held:
            self._loop.call_soon(self._go_on)
        is_last = self._body.is_complete
        if body or is_last:
            self._add_body(body, is_last=is_last)
        return len(self._unread) < before

    def _go_on(self) -> None:
        self._is_held = False
        self._read_on()

    def _add_body(self, body: bytes, *, is_last: bool = False) -> None:
        cycle = self._cycle
        assert cycle is not None
        if is_last:
            self._stage = Stage.NEXT
            cycle.more_body = False
        if cycle.is_complete:
            self._throw(len(body))
            if is_last:
                self._await_head()
            return
        cycle.body += body
        cycle.event.set()
        if len(cycle.body) > HELD_BYTES:
            self._pace()

    def _throw(self, count: int) -> None:
        self._thrown += count
        if self._thrown > self._throws:
            self._transport.abort()

    def _pace(self) -> None:
        """Read from the socket unless too much of what came before is still to be looked at."""
        stops = self._is_held
        if self._cycle is not None and self._stage is not Stage.CLOSING:
            held = max(len(self._unread), len(self._cycle.body))
            stops = stops or held > HELD_BYTES
        if stops != self._is_read_paused and not self._transport.is_closing():
            self._is_read_paused = stops
            (self._transport.pause_reading if stops else self._transport.resume_reading)()

    # -- requests --------------------------------------------------------------------------------
    def _begin(self, head: Head) -> None:
        cycle = self._cycle = RequestCycle(self, head)
        self._thrown, self._throws = 0, DISCARD_BYTES
        if head.is_chunked or head.content_length:
            self._stage = Stage.BODY
            self._body = ChunkedBody() if head.is_chunked else SizedBody(head.content_length)
        else:
            self._stage = Stage.NEXT
            cycle.more_body = cycle.is_asked_to_continue = False
            cycle.event.set()
        scope = scope_of(head, *self._addresses, self._app_state.copy())
        task = self._loop.create_task(self._app(scope, cycle.receive, cycle.send))
        self._server.tasks.add(task)
        task.add_done_callback(partial(self._ended, cycle))

    def _ended(self, cycle: RequestCycle, task: asyncio.Task[None]) -> None:
        """The application has returned: with a complete response, or there is none to come."""
        self._server.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("the application failed", exc_info=task.exception())
        if not cycle.is_complete and not cycle.is_disconnected:
            self._break_off(cycle, 500, "internal error")

    def _await_head(self) -> None:
        """The message before was read and answered: look at the next one."""
        self._stage = Stage.HEAD
        self._places.wait(self)
        self._deadline.set(self._keep_alive_s)

    # -- for the cycle, as `Wire` ----------------------------------------------------------------
    def write(self, raw: bytes | memoryview) -> None:
        self._transport.write(raw)

    async def drained(self) -> None:
        await self._writable.wait()

    def default_headers(self) -> Iterable[tuple[bytes, bytes]]:
        return self._server.default_headers

    def can_stay(self) -> bool:
        if self._stage is Stage.NEXT:
            return True
        if self._stage is not Stage.BODY or (self._cycle and self._cycle.is_asked_to_continue):
            return False  # who was not told to continue may or may not send the body
        return isinstance(self._body, SizedBody) and self._body.left <= DISCARD_BYTES

    def body_taken(self) -> None:
        if self._is_read_paused:
            self._pace()

    def response_complete(self) -> None:
        cycle = self._cycle
        assert cycle is not None
        cycle.body = bytearray()
        if self._transport.is_closing():
            return
        if not cycle.keeps_alive:
            self._close()
        elif self._stage is Stage.NEXT:
            self._await_head()
            if self._unread:
                self._read_on()
        else:
            self._deadline.set(DISCARD_S)
        self._pace()

    # -- the end ---------------------------------------------------------------------------------
    def _refuse(self, status: int, message: str, *headers: bytes) -> None:
        """Answer what is no request, and close. No response may be under way."""
        self._transport.write(refusal(status, message, *headers))
        self._places.wait(self)
        self._linger()

    def _turn_away(self) -> None:
        self._refuse(
            503, "the server has no place for another request; try again", b"retry-after: 1"
        )

    def _break_off(self, cycle: RequestCycle, status: int, message: str) -> None:
        """End the present request: its body or its response has no end that could be found."""
        is_started = cycle.is_written
        self._disconnect()
        if is_started:
            self._transport.abort()  # an end of its own would make a part look like the whole
        else:
            self._refuse(status, message)

    def _disconnect(self) -> None:
        if self._cycle is not None:
            self._cycle.is_disconnected = True
            self._cycle.event.set()

    def _close(self) -> None:
        """Close once all is written, reading on for a while where the caller may still send."""
        if self._stage is Stage.NEXT and not self._unread:
            self._close_now()
        else:
            self._linger()

    def _close_now(self) -> None:
        """Close once all is written, if that is read at all."""
        self._transport.close()
        self._writes.begin()

    def _linger(self) -> None:
        """Read on for a while: closing a socket with unread bytes would take the response back."""
        self._thrown = 0
        self._throws = LINGER_BYTES if self._stage is Stage.BODY else DISCARD_BYTES
        self._stage, self._body = Stage.CLOSING, SizedBody(0)
        self._unread.clear()
        self._pace()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._deadline.set(LINGER_S)

    def _too_slow(self) -> None:
        if self._stage is Stage.HEAD and self._cycle is None:
            self._refuse(408, f"the request's head took longer than {HEAD_TIMEOUT_S:g} s")
        elif self._stage is not Stage.CLOSING:
            self._close_now()
        elif self._transport.get_write_buffer_size():
            self._deadline.set(LINGER_S)  # the response is still being read
            self._writes.begin()
        else:
            self._transport.abort()
