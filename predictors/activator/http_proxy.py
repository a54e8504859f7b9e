"""Passes HTTP requests on to the model's server, body and answer in parts as they come.

Both sides are parsed and written again: by `protocol.http` towards the caller and by h11 (httpcore)
towards the model. Each request has a connection of its own, so that a Service spreads requests over
the pods and none is sent on a connection that was just closed.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpcore

from predictors.activator.fields import request_fields, response_fields
from predictors.activator.held_body import HeldBody
from predictors.activator.proxying import Proxying, first_of
from predictors.errors import InvalidRequest, UpstreamFailed
from predictors.protocol.call import Call
from predictors.protocol.error_formats import error_format
from predictors.protocol.http.bodies import Receive
from predictors.protocol.http.cycle import STATUS_LINES
from predictors.protocol.http.exchange import CALL_KEY, Scope
from predictors.protocol.http.responses import Send

READY_PATH = b"/v2/health/ready"
NOT_REACHED = (httpcore.ConnectError, httpcore.ConnectTimeout)
BROKEN = (httpcore.NetworkError, httpcore.RemoteProtocolError, httpcore.TimeoutException)
KEEPALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + [
    (socket.IPPROTO_TCP, getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4))
    if hasattr(socket, name)
]
"""Notices a node that is gone after 35 s: an answer may take minutes, so no read times out."""


@dataclass(frozen=True, slots=True)
class HttpAddress:
    """Host and port of the model's REST, without TLS."""

    host: str
    port: int

    def url(self, target: bytes) -> httpcore.URL:
        return httpcore.URL(scheme=b"http", host=self.host.encode(), port=self.port, target=target)

    @property
    def field(self) -> bytes:
        """Value of a Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}".encode()


class HttpUpstream:
    """Connections to the model's server, one per request. Event loop only."""

    def __init__(self, address: HttpAddress, connect_timeout_s: float) -> None:
        self.address = address
        self._timeouts = {"connect": connect_timeout_s}
        self._pool = httpcore.AsyncConnectionPool(
            max_connections=None, max_keepalive_connections=0, socket_options=KEEPALIVE
        )

    async def is_ready(self) -> bool:
        """The model's server says that it is ready."""
        fields = [(b"host", self.address.field), (b"connection", b"close")]
        request = httpcore.Request(
            b"GET",
            self.address.url(READY_PATH),
            headers=fields,
            extensions={"timeout": {**self._timeouts, "read": self._timeouts["connect"]}},
        )
        try:
            # httpcore's times are of one read each: an endless answer must not end the asking
            async with asyncio.timeout(2 * self._timeouts["connect"]):
                response = await self._pool.handle_async_request(request)
                await response.aclose()
        except (*NOT_REACHED, *BROKEN, TimeoutError):
            return False
        status: int = response.status
        return status == 200

    async def send(
        self,
        method: str,
        target: bytes,
        fields: list[tuple[bytes, bytes]],
        body: AsyncIterator[bytes],
    ) -> httpcore.Response | None:
        """The answer's head, after the whole body was sent; None if there was no connection, and
        then nothing of the body was taken. Raises `UpstreamFailed` and what `body` raises."""
        request = httpcore.Request(
            method.encode(),
            self.address.url(target),
            headers=fields,
            content=body,
            extensions={"timeout": self._timeouts},
        )
        try:
            response = await self._pool.handle_async_request(request)
        except NOT_REACHED:
            return None
        except BROKEN as error:
            raise broken_off() from error
        except httpcore.LocalProtocolError as error:
            raise InvalidRequest("the request can't be passed on as HTTP/1.1") from error
        if response.status not in STATUS_LINES:
            await response.aclose()
            raise UpstreamFailed(
                f"the model's server answered with status {response.status}, which HTTP does not "
                "have; the request may have been carried out"
            )
        return response

    async def close(self) -> None:
        await self._pool.aclose()


def broken_off() -> UpstreamFailed:
    return UpstreamFailed(
        "the model's server ended the connection before the end of its answer; the request may "
        "have been carried out"
    )


class HttpProxy:
    """The ASGI application of every path, inside `RestApp`, which renders its errors."""

    def __init__(self, proxying: Proxying, upstream: HttpUpstream, body_timeout_s: float) -> None:
        self._proxying = proxying
        self._upstream = upstream
        self._body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = HeldBody(receive, self._proxying.room, self._body_timeout_s)
        try:
            with self._proxying.request(error_format(scope["path"]).protocol):
                await self._forward(scope, body, send)
        finally:
            body.drop()

    async def _forward(self, scope: Scope, body: HeldBody, send: Send) -> None:
        call: Call = scope[CALL_KEY]
        peer = scope["client"]
        known = (call.request_id, peer[0] if peer else "", self._upstream.address.field)
        began = time.monotonic()
        query = scope["query_string"]
        target = scope["raw_path"] + (b"?" + query if query else b"")

        async def attempt() -> httpcore.Response | None:
            waited_s = time.monotonic() - began
            fields = request_fields(scope["headers"], *known, waited_s)
            sending = self._upstream.send(scope["method"], target, fields, body.stream())
            return await first_of(sending, _left_after(body))

        response = await self._proxying.reach(call, attempt, body.read_ahead)
        try:
            await first_of(_answer(response, send), _left_after(body))
        finally:
            await response.aclose()


async def _left_after(body: HeldBody) -> None:
    """Raise `Cancelled` if the caller leaves after the body was sent; before, sending it does."""
    await body.was_sent.wait()
    await body.until_left()


async def _answer(response: httpcore.Response, send: Send) -> None:
    """Pass on head and content. A break cuts the caller's connection: a regular end would make a
    part of an answer look like the whole."""
    start: dict[str, Any] = {
        "type": "http.response.start",
        "status": response.status,
        "headers": response_fields(response.headers),
    }
    await send(start)
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    try:
        async with aclosing(response.aiter_stream()) as parts:  # type: ignore[type-var]
            async for part in parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
    except BROKEN as error:
        raise broken_off() from error
    await send({"type": "http.response.body", "body": b""})
