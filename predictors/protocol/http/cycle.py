"""One HTTP request and its response, as the `receive` and `send` callables of ASGI 3, and streams
of events that stay open while nothing happens."""

from __future__ import annotations

import asyncio
import http
import math
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Protocol

import orjson

from predictors.protocol.call import REQUEST_ID_HEADER, EventWriter, clean_request_id
from predictors.protocol.http.parsing import Head

WRITE_BYTES = 256 * 1024  # per write; bounds what a client that does not read can hold in memory
NO_BODY = frozenset({204, 304})
BODY = "http.response.body"
WRITER = "predictors.writer"  # ASGI extension: the `EventWriter` of the request's connection
COMMENT = b": still working\n\n"  # of an event stream; readers skip it

ASGI = {"version": "3.0", "spec_version": "2.3"}


def _status_line(status: int) -> bytes:
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode("ascii")


STATUS_LINES = {status: _status_line(status) for status in range(100, 600)}


def scope_of(head: Head, server: object, client: object, state: object) -> dict[str, Any]:
    """The ASGI scope of a request head. Percent-escapes of the path are decoded."""
    path = head.path.decode("ascii")
    return {
        "type": "http",
        "asgi": ASGI,
        "http_version": head.version,
        "server": server,
        "client": client,
        "scheme": "http",
        "method": head.method,
        "root_path": "",
        "path": urllib.parse.unquote(path) if "%" in path else path,
        "raw_path": head.path,
        "query_string": head.query,
        "headers": head.headers,
        "state": state,
    }


def refusal(status: int, message: str, *headers: bytes) -> bytes:
    """An error response for input that can't be read as a request. It closes the connection."""
    body = orjson.dumps({"error": message})
    lines = [
        STATUS_LINES[status],
        b"content-type: application/json\r\n",
        b"content-length: %d\r\n" % len(body),
        b"%s: %s\r\n" % (REQUEST_ID_HEADER.encode(), clean_request_id(None).encode()),
        *(header + b"\r\n" for header in headers),
        b"connection: close\r\n\r\n",
    ]
    return b"".join(lines) + body


class CycleConnection(Protocol):
    """The connection of a cycle, which `HttpConnection` implements. Event loop only."""

    is_write_paused: bool

    def write(self, raw: bytes | memoryview) -> None:
        """Send `raw`, or buffer it until the client has read enough."""

    async def wait_writable(self) -> None:
        """Return when more may be written, or the connection is lost."""

    def default_headers(self) -> Iterable[tuple[bytes, bytes]]: ...

    def can_keep_alive(self) -> bool: ...

    def body_consumed(self) -> None:
        """The application has received the buffered part of the body."""

    def response_complete(self) -> None: ...


class RequestCycle:
    """One request and its response. Event loop only.

    The connection appends to `body`, clears `more_body` at the end of the body, and sets `event` at
    either and when the client disconnects.
    """

    def __init__(self, connection: CycleConnection, head: Head) -> None:
        self._connection = connection
        self._has_body = head.method != "HEAD"
        self._may_chunk = head.version == "1.1"
        self.is_asked_to_continue = head.expects_continue
        self.keeps_alive = head.keeps_alive
        self.body = bytearray()
        self.more_body = True
        self.event = asyncio.Event()
        self.is_disconnected = False
        self.is_started = False
        self.is_complete = False
        self._chunks = False
        self._head = b""  # of the response; sent together with the first part of the body
        self._bytes_left: int | None = (
            None  # bytes of Content-Length not yet sent; None without one
        )

    @property
    def is_written(self) -> bool:
        return self.is_started and not self._head

    # -- ASGI ------------------------------------------------------------------------------------
    async def receive(self) -> MutableMapping[str, Any]:
        """ASGI receive: the body buffered so far; after that, wait until the client disconnects or
        the response is complete."""
        if self.is_asked_to_continue and not self.is_disconnected:
            self.is_asked_to_continue = False
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self.is_disconnected and not self.is_complete:
            await self.event.wait()
            self.event.clear()
        if self.is_disconnected or self.is_complete:
            return {"type": "http.disconnect"}
        body = bytes(self.body)
        if body:
            self.body = bytearray()
            self._connection.body_consumed()
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """ASGI send: write a part of the response. Waits while the client does not read."""
        if self._connection.is_write_paused and not self.is_disconnected:
            await self._connection.wait_writable()
        if self.is_disconnected:
            return
        expected = "http.response.body" if self.is_started else "http.response.start"
        if self.is_complete or message["type"] != expected:
            raise RuntimeError(f"{message['type']!r} was sent instead of {expected!r}")
        if not self.is_started:
            self._start_response(message["status"], message.get("headers", ()))
            return
        body: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        if body and self._has_body:
            self._count(body)
            if len(body) > WRITE_BYTES:
                await self._write_large(body)
            elif self._chunks:
                self._connection.write(b"%b%x\r\n%b\r\n" % (self._take_head(), len(body), body))
            else:
                self._connection.write(self._take_head() + body if self._head else body)
        elif more and self._head:  # a stream whose first event is not there yet
            self._connection.write(self._take_head())
        if not more and not self.is_disconnected:
            self._finish()

    # -- `EventWriter` ---------------------------------------------------------------------------
    @property
    def is_open(self) -> bool:
        """A chunk of the body may be written now."""
        is_ready = self._chunks and not self._head and not self.is_complete
        return is_ready and not (self._connection.is_write_paused or self.is_disconnected)

    def write(self, event: bytes) -> None:
        """Write a chunk of the body. Only while `is_open`."""
        self._connection.write(b"%x\r\n%b\r\n" % (len(event), event))

    # -- the response ----------------------------------------------------------------------------
    def _start_response(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.keeps_alive = self.keeps_alive and self._connection.can_keep_alive()
        lines = [STATUS_LINES[status]]
        for name, value in (*self._connection.default_headers(), *headers):
            if name == b"content-length":
                if status == http.HTTPStatus.NO_CONTENT:
                    continue  # RFC 9110, 8.6: a client might wait for that content
                self._bytes_left = int(value)
            elif name == b"connection":
                self.keeps_alive = self.keeps_alive and value != b"close"
                continue
            elif name == b"transfer-encoding":
                continue  # framing is decided here
            lines.append(b"%b: %b\r\n" % (name, value))
        self._has_body = self._has_body and status not in NO_BODY
        if not self._has_body:
            self._bytes_left = None
        elif self._bytes_left is None:
            self._chunks = self._may_chunk
            self.keeps_alive = self.keeps_alive and self._may_chunk
            if self._chunks:
                lines.append(b"transfer-encoding: chunked\r\n")
        if not self.keeps_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        raw = b"".join(lines)
        if not raw.count(b"\r") == raw.count(b"\n") == len(lines):
            raise RuntimeError("a header of the response has a line end in it")
        self.is_started = True
        self._head = raw

    def _take_head(self) -> bytes:
        head, self._head = self._head, b""
        return head

    def _count(self, body: bytes) -> None:
        if self._bytes_left is not None:
            self._bytes_left -= len(body)
            if self._bytes_left < 0:
                raise RuntimeError("the response is longer than its Content-Length")

    async def _write_large(self, body: bytes) -> None:
        self._connection.write(self._take_head() + (b"%x\r\n" % len(body) if self._chunks else b""))
        view = memoryview(body)
        for begin in range(0, len(body), WRITE_BYTES):
            if self._connection.is_write_paused:
                await self._connection.wait_writable()
            if self.is_disconnected:
                return
            self._connection.write(view[begin : begin + WRITE_BYTES])
        if self._chunks:
            self._connection.write(b"\r\n")

    def _finish(self) -> None:
        if self._bytes_left:
            raise RuntimeError(
                f"the response is {self._bytes_left} bytes short of its Content-Length"
            )
        last = self._take_head() + (b"0\r\n\r\n" if self._chunks else b"")
        if last:
            self._connection.write(last)
        self.is_complete = True
        self.event.set()
        self._connection.response_complete()


class StreamBody:
    """Sends the events of one response, and a comment whenever nothing else was sent for
    `interval_s`, so that no proxy takes the stream for dead. Event loop only.

    One timer runs per stream. An event does not touch it: the timer looks when it is due how long
    nothing was sent. `interval_s` of 0 sends no comments.
    """

    def __init__(
        self,
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
        writer: EventWriter | None = None,
    ) -> None:
        """`writer` writes parts of the same response as `send`."""
        self._send = send
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._sent_at = math.inf  # seconds of the loop's clock; inf while something is being sent
        self._comment: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    # -- `EventWriter` ---------------------------------------------------------------------------
    @property
    def is_open(self) -> bool:
        """The response's next event is awaited, and may be written at once."""
        is_idle = self._sent_at < math.inf and self._comment is None
        return is_idle and self._writer is not None and self._writer.is_open

    def write(self, event: bytes) -> None:
        """Write an event instead of sending it. Only while `is_open`."""
        assert self._writer is not None
        self._writer.write(event)
        self._sent_at = self._loop.time()

    # -- sending ---------------------------------------------------------------------------------
    async def send_all(self, events: AsyncIterator[bytes], interval_s: float) -> None:
        """Send all events; raises what `events` raises."""
        self._sent_at = self._loop.time()
        if interval_s > 0:
            self._arm(interval_s, interval_s)
        try:
            async for event in events:
                if self._comment is not None:  # two tasks must not write at once
                    await self._comment
                    self._comment = None
                self._sent_at = math.inf
                await self._send({"type": BODY, "body": event, "more_body": True})
                self._sent_at = self._loop.time()
        except asyncio.CancelledError:  # the caller left
            if self._comment is not None:
                self._comment.cancel()
                self._comment = None
            raise
        finally:
            self._sent_at = math.inf  # closed for good
            if self._timer is not None:
                self._timer.cancel()
            if self._comment is not None:
                await self._comment

    def _arm(self, seconds: float, interval_s: float) -> None:
        self._timer = self._loop.call_later(seconds, self._look, interval_s)

    def _look(self, interval_s: float) -> None:
        left_s = self._sent_at + interval_s - self._loop.time()
        if left_s > 0:
            self._arm(min(left_s, interval_s), interval_s)
            return
        self._sent_at = self._loop.time()
        message = {"type": BODY, "body": COMMENT, "more_body": True}
        if self._comment is None or self._comment.done():
            self._comment = self._loop.create_task(self._write(message))
        self._arm(interval_s, interval_s)

    async def _write(self, message: MutableMapping[str, Any]) -> None:
        await self._send(message)
