"""HTTP/1.1 on one connection: uvicorn's protocol with bounds on the head and JSON for what is no
HTTP. Knows no route.

httptools bounds neither the length of a head nor the time it takes; a connection that never sends
one would be kept for ever.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from predictors.protocol.call import REQUEST_ID_HEADER, clean_request_id

MAX_HEAD_BYTES = 64 * 1024
HEAD_TIMEOUT_S = 30.0


_UPGRADE = re.compile(rb"\r\n(upgrade:)", re.IGNORECASE)


def without_upgrade(data: bytes) -> bytes:
    """`data`, which begins in a head, with its `Upgrade` renamed: a server may ignore that header.

    Java's client and `curl --http2` ask for HTTP/2 with every first request; llhttp would stop
    there and never read the body.
    """
    found = _UPGRADE.search(data)
    if found is None or found.start() > data.find(b"\r\n\r\n") >= 0:
        return data
    return data[: found.start(1)] + b"x-" + data[found.start(1) :]


class HeadTooLarge(Exception):
    """More than `MAX_HEAD_BYTES` before the body."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Event loop only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._refusal = 400, "this is not an HTTP/1.1 request"

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head or self.cycle is None or self.cycle.response_complete:
            data = without_upgrade(data)
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_head()
        elif self._head_timer is None:
            self._arm()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._grow(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._grow(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        self._disarm()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when the parser gives up; the connection ends with it."""
        self._disarm()
        status, message = self._refusal
        body = orjson.dumps({"error": message})
        head = [
            STATUS_LINE[status],
            b"content-type: application/json\r\n",
            b"content-length: %d\r\n" % len(body),
            b"%s: %s\r\n" % (REQUEST_ID_HEADER.encode(), clean_request_id(None).encode()),
            b"connection: close\r\n\r\n",
        ]
        self.transport.write(b"".join(head) + body)
        self.transport.close()

    def _grow(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refusal = 431, f"the request's head is larger than {MAX_HEAD_BYTES} bytes"
            raise HeadTooLarge  # httptools stops, and uvicorn calls `send_400_response`

    def _refuse_head(self) -> None:
        self._refusal = 431, f"the request's head is larger than {MAX_HEAD_BYTES} bytes"
        self.send_400_response("")

    def _arm(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._too_slow)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            self._refusal = 408, f"the request's head took longer than {HEAD_TIMEOUT_S:g} s"
            self.send_400_response("")
