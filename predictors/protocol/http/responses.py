"""Responses as values: a complete one, or a stream of server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from predictors.protocol.faults import Fault

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON_TYPE = ("content-type", "application/json")


@dataclass(frozen=True, slots=True)
class Response:
    """A complete response. Header names are lower-case; content-length is added when it is sent."""

    body: bytes
    status: int = 200
    headers: Sequence[tuple[str, str]] = (JSON_TYPE,)


@dataclass(frozen=True, slots=True)
class EventStream:
    """A response of server-sent events. Each item of `events` is sent as it is, framing included,
    and `last_event` after the last one.

    An exception before the first item becomes an ordinary error response. The head is sent with
    the first item, at once even if that is empty. A later exception is sent as
    `encode_error(fault)` in place of `last_event`. `events` is always closed. With
    `is_direct` their source may write to the call's `writer` while the next item is awaited.
    """

    events: AsyncIterator[bytes]
    encode_error: Callable[[Fault], bytes]
    last_event: bytes = b""
    headers: Sequence[tuple[str, str]] = field(
        default=(
            ("content-type", "text/event-stream; charset=utf-8"),
            ("cache-control", "no-store"),
        )
    )
    is_direct: bool = False


def json_response(value: object, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status)


async def send_response(send: Send, response: Response) -> None:
    headers = [
        (name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers
    ]
    if response.status not in (204, 304):  # RFC 9110, 8.6
        headers.append((b"content-length", str(len(response.body)).encode("ascii")))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})
