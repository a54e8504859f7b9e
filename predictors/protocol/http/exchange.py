"""What every REST edge shares: one exchange from head to answer. Knows no wire format of a body.

`Endpoint` is an ASGI endpoint that asks a model for something. Its handler gets an `Exchange` and
returns a `Response` or an `EventStream`; that is sent, counted once, logged once, and turned into
a fault of the caller's own wire format when it raises. When the client goes away, the task that
waits for the model is cancelled, and with it the jobs.

    async def chat(exchange: Exchange) -> Response:
        body = await exchange.decode_body(openai_chat.decode)
        model = exchange.admit(body["model"])
        return json_response(await model.chat(body, exchange.call))

    Route("/v1/chat/completions", Endpoint(chat, registry, protocol="openai", operation="chat",
                                       body_of=Fault.openai_body), methods=["POST"])
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, MutableMapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson

from predictors.errors import Cancelled, DeadlineExceeded, ServingError
from predictors.protocol.call import Call
from predictors.protocol.faults import Fault, fault_of
from predictors.protocol.http.body_reader import (
    INLINE_BYTES,
    Body,
    Charge,
    Receive,
    fail_at,
    receive_body,
    slow_body_message,
)
from predictors.protocol.http.json_bodies import JSON_MEDIA, check_media
from predictors.protocol.outcomes import RequestRecord, result_or_error
from predictors.protocol.registry import Registry
from predictors.protocol.serves import Served
from predictors.protocol.tasks import decode_large

T = TypeVar("T")
Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

CALL_KEY = "predictors.call"  # where `RestApp` leaves the call in the scope
TOO_LATE = "the deadline passed before the body was here"
STATUS_KEY = "predictors.status"  # where it finds the status to log
WATCH_AFTER_S = 0.005  # a shorter request is over before a task that watches the client has begun
JSON_TYPE = ("content-type", "application/json")


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer. Header names are lower-case; content-length is added."""

    body: bytes
    status: int = 200
    headers: Sequence[tuple[str, str]] = (JSON_TYPE,)


@dataclass(frozen=True, slots=True)
class EventStream:
    """An answer in server-sent events: each item of `events` is sent as it is, framing included,
    and `closing` after the last one.

    The status is decided by the first item: what raises before it is an ordinary fault. What raises
    later is sent as `last_words(fault)` in place of `closing`. `events` is closed here, always.
    """

    events: AsyncIterator[bytes]
    last_words: Callable[[Fault], bytes]
    closing: bytes = b""
    headers: Sequence[tuple[str, str]] = field(
        default=(
            ("content-type", "text/event-stream; charset=utf-8"),
            ("cache-control", "no-store"),
        )
    )


def json_response(value: object, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(value), status)


async def send_response(send: Send, reply: Response) -> None:
    """Send a whole answer over ASGI."""
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers]
    headers.append((b"content-length", str(len(reply.body)).encode("ascii")))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


class Exchange:
    """One request for work. Event loop only."""

    def __init__(self, work: Endpoint, scope: Scope, receive: Receive) -> None:
        self.call: Call = scope[CALL_KEY]
        self.path: dict[str, str] = scope.get("path_params", {})
        self.record = RequestRecord(work.protocol, work.operation, self.call)
        self._registry = work.registry
        self._receive = receive
        self._admitted = False
        self._charge: Charge | None = None  # of a body that is not small
        self._given_up: ServingError | None = None
        self._late: asyncio.TimerHandle | None = None
        self._task = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.gone = False

    # -- for handlers ------------------------------------------------------------------------------
    async def body(self, media: Collection[str] = JSON_MEDIA) -> Body:
        """The body; from here on a client that leaves cancels the handler.

        A body that is not whole when the server begins to drain is given up with `Draining`.
        """
        check_media(self.call, media)
        own, loop = self._registry.settings.server, asyncio.get_running_loop()
        self._arm(own.body_timeout_s)  # for the first piece; the reader sees to the others
        self._registry.pending_bodies.add(self)
        try:
            raw = await receive_body(
                self._receive,
                self.call,
                own.max_body_bytes,
                make_charge=self._make_charge,
                piece_timeout_s=own.body_timeout_s,
            )
        except Cancelled:
            self.gone = True
            raise
        except asyncio.CancelledError:
            if self._given_up is not None and self._task is not None and not self._task.uncancel():
                raise self._why_given_up() from None
            raise
        finally:
            self._registry.pending_bodies.discard(self)
            if self._late is not None:
                self._late.cancel()
        self._timer = loop.call_later(WATCH_AFTER_S, self._start_watching)
        return raw

    def stop_reading(self, reason: ServingError) -> None:
        """Give up a body that is still arriving, for `reason`. Once."""
        if self._task is not None and self._given_up is None:
            self._given_up = reason
            self._task.cancel()

    def _arm(self, at_most_s: float = math.inf) -> None:
        """Give the body up after so long, or at the request's deadline."""
        if self._late is not None:
            self._late.cancel()
            self._late = None
        deadline = self.call.deadline
        left_s = math.inf if deadline is None else deadline - time.monotonic()
        if min(at_most_s, left_s) < math.inf:
            message = TOO_LATE if left_s <= at_most_s else slow_body_message(at_most_s)
            loop = asyncio.get_running_loop()
            self._late = loop.call_later(min(at_most_s, left_s), self._too_late, message)

    def _why_given_up(self) -> ServingError:
        # not kept: a failure refers to the frames that it passed through, and they to the body
        error, self._given_up = self._given_up, None
        assert error is not None
        return error

    def _make_charge(self) -> Charge:
        self._arm()
        self._charge = Charge(self._registry.bytes_in_flight)
        return self._charge

    def _too_late(self, message: str) -> None:
        self.stop_reading(DeadlineExceeded(message))

    async def decode_body(
        self, decode: Callable[..., T], *arguments: Any, media: Collection[str] = JSON_MEDIA
    ) -> T:
        """The body as `decode` returns it. `decode` runs on the event loop for a small body, in a
        thread up to a MiB, and beyond in a worker process: it may hold the interpreter's lock long.

        `decode(raw, *arguments)` is a function of a module that workers import.
        """
        raw = await self.body(media)
        if isinstance(raw, bytes) and len(raw) <= INLINE_BYTES:
            return decode(raw, *arguments)
        async with fail_at(self.call.deadline, "the deadline passed while the body was read"):
            if isinstance(raw, bytes):
                return await self._registry.in_thread(decode, raw, *arguments)
            return await decode_large(self._registry.workers, decode, raw, *arguments)

    def find(self, name: str, version: str = "") -> Served:
        """The model, ready or not; the request is counted under its name. Raises `NotFound`."""
        model = self._registry.find(name, version)
        self.record.model = name
        return model

    def admit(self, name: str, version: str = "") -> Served:
        """The model, with this request counted as in flight until it is answered.

        Raises `NotFound`, `Draining` or `NotReady`. Call it once, before anything expensive.
        """
        model = self.find(name, version)
        self._registry.begin_request(name)
        self._admitted = True
        return model

    # -- for `Endpoint` -----------------------------------------------------------------------
    def close(self) -> None:
        """The answer is written: nobody is watched and nothing is in flight any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._charge is not None:
            self._registry.release_bytes(self._charge)
        if self._admitted:
            self._admitted = False
            self._registry.end_request()

    def _start_watching(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._task is not None:
            self.gone = True
            self._task.cancel()


Handler = Callable[[Exchange], Awaitable[Response | EventStream]]


class Endpoint:
    """An ASGI endpoint around a handler; see the module's first lines."""

    def __init__(
        self,
        handler: Handler,
        registry: Registry,
        *,
        protocol: str,
        operation: str,
        body_of: Callable[[Fault], bytes],
    ) -> None:
        self.handler = handler
        self.registry = registry
        self.protocol = protocol
        self.operation = operation
        self.body_of = body_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(self, scope, receive)
        try:
            reason = await self._answer(exchange, send)
        except (asyncio.CancelledError, Cancelled):
            if not exchange.gone:  # the process ends before the drain was over
                exchange.record.end("draining")
                raise
            reason = "cancelled"  # nobody reads what we would send
            scope[STATUS_KEY] = 499
        finally:
            exchange.close()
        exchange.record.end(reason)

    async def _answer(self, exchange: Exchange, send: Send) -> str:
        """Send the answer or the fault; returns the reason to count."""
        exchange.call.protocol = self.protocol
        reply = await result_or_error(self._handle(exchange))
        if isinstance(reply, EventStream):
            async with aclosing(reply.events) as events:  # type: ignore[type-var]
                first = await result_or_error(anext(events, b""))
                if not isinstance(first, Exception):
                    return await self._stream(exchange, reply, first, send)
            reply = first
        if not isinstance(reply, Exception):
            await send_response(send, reply)
            return "ok"
        if exchange.gone:
            raise Cancelled("the caller left") from reply
        fault = self.fault(reply, exchange.call)
        headers = (JSON_TYPE, *fault.headers)
        await send_response(send, Response(self.body_of(fault), fault.status, headers))
        return fault.reason

    async def _handle(self, exchange: Exchange) -> Response | EventStream:
        exchange.call.read_deadline(self.registry.settings.queue.default_timeout_s)
        return await self.handler(exchange)

    async def _stream(
        self, exchange: Exchange, stream: EventStream, first: bytes, send: Send
    ) -> str:
        headers = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in stream.headers]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": first, "more_body": True})
        failure = await result_or_error(_pump(stream.events, send))
        reason, last = "ok", stream.closing
        if failure is not None:  # the status is out: the stream itself says it
            fault = self.fault(failure, exchange.call)
            reason, last = fault.reason, stream.last_words(fault)
        await send({"type": "http.response.body", "body": last})
        return reason

    def fault(self, error: Exception, call: Call) -> Fault:
        """What the caller sees of `error`."""
        status = self.registry.settings.queue.overload_status
        return fault_of(error, overload_status=status, request_id=call.request_id)


async def _pump(events: AsyncIterator[bytes], send: Send) -> None:
    async for event in events:
        await send({"type": "http.response.body", "body": event, "more_body": True})
