"""One HTTP exchange with a model, from the parsed head to the complete response, for any wire
format.

An `Endpoint` gives its handler an `Exchange`, and sends, counts and logs the `Response` or
`EventStream` that it returns. An exception becomes an error response in the caller's wire format.
When the client disconnects, the handler's task is cancelled, and with it its jobs.

    async def chat(exchange: Exchange) -> Response:
        body = await exchange.decode_body(decode_chat)
        model = exchange.find(body.model)
        exchange.admit(model)
        return json_response(await model.chat(body, exchange.call))

    Route("/v1/chat/completions", Endpoint(chat, registry, protocol="openai", operation="chat",
                                           body_of=Fault.openai_body), methods=["POST"])
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from contextlib import aclosing
from typing import Any, TypeVar

from predictors.errors import Cancelled, DeadlineExceeded, ServingError
from predictors.protocol.bytes_in_flight import Charge
from predictors.protocol.call import PRIORITY_HEADER, Call, EventWriter
from predictors.protocol.faults import Fault, fault_of
from predictors.protocol.http.bodies import (
    INLINE_BYTES,
    JSON_MEDIA,
    SHARED_BYTES,
    Body,
    Receive,
    check_announced,
    check_media,
    fail_at,
    receive_body,
    slow_body_message,
)
from predictors.protocol.http.cycle import WRITER, StreamBody
from predictors.protocol.http.inflating import INLINE_BYTES as INFLATE_INLINE_BYTES
from predictors.protocol.http.inflating import INLINE_PIECES, Inflation, codings_of
from predictors.protocol.http.responses import (
    JSON_TYPE,
    EventStream,
    Response,
    Send,
    send_response,
)
from predictors.protocol.outcomes import RequestRecord, result_or_error
from predictors.protocol.registry import Registry
from predictors.protocol.serves import Served
from predictors.protocol.tasks import decode_large

T = TypeVar("T")
Scope = MutableMapping[str, Any]

CALL_KEY = "predictors.call"  # scope key of the request's `Call`, set by `RestApp`
READ_DEADLINE_MESSAGE = "the deadline passed before the body was here"
STATUS_KEY = "predictors.status"  # scope key of the status for the access log
WATCH_AFTER_S = 0.005  # start watching for a disconnect after this; saves a task per short request


class Exchange:
    """One request for a model. Event loop only."""

    def __init__(self, endpoint: Endpoint, scope: Scope, receive: Receive) -> None:
        self.call: Call = scope[CALL_KEY]
        self.path: dict[str, str] = scope.get("path_params", {})
        self.record = RequestRecord(endpoint.protocol, endpoint.operation, self.call)
        self._registry, self._most_bytes = endpoint.registry, endpoint.most_bytes
        self._receive = receive
        self._admitted = False
        self._charge: Charge | None = None  # None for a small body
        self._stop_reason: ServingError | None = None
        self._read_deadline: asyncio.TimerHandle | None = None
        self._task = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self._watch_timer: asyncio.TimerHandle | None = None
        self.is_disconnected = False
        self.writer: EventWriter | None = scope.get("extensions", {}).get(WRITER)
        """Writes parts of the response; None on a server of another kind."""

    # -- for handlers ------------------------------------------------------------------------------
    async def read_body(self, media: Collection[str] = JSON_MEDIA) -> Body:
        """Read the body. From then on a client that disconnects cancels the handler.

        Raises `UnsupportedMedia`, `Draining` for an incomplete body once the server drains,
        `QuotaExceeded` for too many of them, and what `receive_body` and `Inflation` raise.
        """
        encoding = self.call.get("content-encoding")
        codings = codings_of(encoding) if encoding else ()
        check_media(self.call, media)
        own, loop = self._registry.settings.server, asyncio.get_running_loop()
        self._registry.pending_bodies.add(self, self.call.caller)
        self._set_read_deadline(own.body_timeout_s)  # of the first piece, then `receive_body`'s
        try:
            raw = await receive_body(
                self._receive,
                self.call,
                self._most_bytes,
                make_charge=self._make_charge,
                piece_timeout_s=own.body_timeout_s,
            )
        except Cancelled:
            self.is_disconnected = True
            raise
        except asyncio.CancelledError:
            if self._stop_reason is not None and self._task and not self._task.uncancel():
                raise self._take_stop_reason() from None
            raise
        finally:
            self._registry.pending_bodies.remove(self)
            if self._read_deadline is not None:
                self._read_deadline.cancel()
        self._watch_timer = loop.call_later(WATCH_AFTER_S, self._start_watching)
        return await self._inflate(raw, codings) if codings else raw

    async def _inflate(self, raw: Body, codings: tuple[str, ...]) -> Body:
        """Inflate a body, in threads unless it is small, and charge its bytes as they grow."""
        size = len(raw) if isinstance(raw, bytes) else raw.size
        inflation = Inflation(raw, codings, self._most_bytes)
        charged = 0 if self._charge is None else size
        charge = self._charge = self._charge or Charge(self._registry.bytes_in_flight)
        if size <= INFLATE_INLINE_BYTES:
            inflation.advance(INLINE_PIECES)
        charge.add(inflation.size)
        async with fail_at(self.call.deadline, "the deadline passed while the body was inflated"):
            while not inflation.is_done:
                before = inflation.size
                await self._registry.in_thread(inflation.advance)
                charge.add(inflation.size - before)
        charge.remove(charged)
        return inflation.body(SHARED_BYTES)

    def stop_reading(self, reason: ServingError) -> None:
        """Cancel the reading of a body that still arrives; it raises `reason`. Only the first call
        has an effect."""
        if self._task is not None and self._stop_reason is None:
            self._stop_reason = reason
            self._task.cancel()

    def _set_read_deadline(self, at_most_s: float = math.inf) -> None:
        if self._read_deadline is not None:
            self._read_deadline.cancel()
            self._read_deadline = None
        deadline = self.call.deadline
        left_s = math.inf if deadline is None else deadline - time.monotonic()
        if min(at_most_s, left_s) < math.inf:
            message = READ_DEADLINE_MESSAGE if left_s <= at_most_s else slow_body_message(at_most_s)
            loop = asyncio.get_running_loop()
            self._read_deadline = loop.call_later(
                min(at_most_s, left_s), self._deadline_passed, message
            )

    def _take_stop_reason(self) -> ServingError:
        # not kept here: the traceback refers to frames that hold the body
        error, self._stop_reason = self._stop_reason, None
        assert error is not None
        return error

    def _make_charge(self) -> Charge:
        self._set_read_deadline()
        self._charge = Charge(self._registry.bytes_in_flight)
        return self._charge

    def _deadline_passed(self, message: str) -> None:
        self.stop_reading(DeadlineExceeded(message))

    async def decode_body(
        self, decode: Callable[..., T], *arguments: Any, media: Collection[str] = JSON_MEDIA
    ) -> T:
        """Read the body and return `decode(raw, *arguments)`.

        `decode` runs on the event loop for a small body, in a thread up to 1 MiB, and in a worker
        process for a larger one, since it may hold the interpreter's lock for long. It must be a
        function of a module that workers import.
        """
        raw = await self.read_body(media)
        if isinstance(raw, bytes) and len(raw) <= INLINE_BYTES:
            return decode(raw, *arguments)
        async with fail_at(self.call.deadline, "the deadline passed while the body was read"):
            if isinstance(raw, bytes):
                return await self._registry.in_thread(decode, raw, *arguments)
            return await decode_large(self._registry.workers, decode, raw, *arguments)

    def check_size(self) -> None:
        """Raise `TooLarge` if the head says that the body has more bytes than are ever taken."""
        check_announced(self.call, self._most_bytes)

    def find(self, name: str, version: str = "") -> Served:
        """Return the model, ready or not, and count the request under it. Raises `NotFound`."""
        model = self._registry.find(name, version, call=self.call)
        self.record.model = model.name
        return model

    def admit(self, model: Served) -> None:
        """Count this request as in flight for a model that was found, until it is answered.

        Raises `Draining` or `NotReady`. Call it once, before any expensive work.
        """
        self._registry.begin_request(model.name)
        self._admitted = True

    # -- for `Endpoint` -----------------------------------------------------------------------
    def close(self) -> None:
        """Release what the request held, after the response was written."""
        if self._watch_timer is not None:
            self._watch_timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        self.release_body()
        if self._admitted:
            self._admitted = False
            self._registry.end_request()

    def release_body(self) -> None:
        """End the body's charge. The body must not be in use any more."""
        if self._charge is not None:
            self._registry.release_bytes(self._charge)
            self._charge = None

    def _start_watching(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._task is not None:
            self.is_disconnected = True
            self._task.cancel()


Handler = Callable[[Exchange], Awaitable[Response | EventStream]]


class Endpoint:
    """ASGI endpoint that runs a handler; see the module's docstring."""

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
        own = registry.settings.server
        self.most_bytes = min(own.max_body_bytes, registry.bytes_in_flight.most_of_one)
        """Most bytes of a body, as sent and as inflated."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(self, scope, receive)
        try:
            reason = await self._answer(exchange, send)
        except (asyncio.CancelledError, Cancelled):
            if not exchange.is_disconnected:  # the process stops before the drain is complete
                exchange.record.end("draining")
                raise
            reason = "cancelled"  # no client is left to read a response
            scope[STATUS_KEY] = 499
        finally:
            exchange.close()
        exchange.record.end(reason)

    async def _answer(self, exchange: Exchange, send: Send) -> str:
        exchange.call.protocol = self.protocol
        response = await result_or_error(self._handle(exchange))
        if isinstance(response, EventStream):
            async with aclosing(response.events) as events:  # type: ignore[type-var]
                first = await result_or_error(anext(events, b""))
                if not isinstance(first, Exception):
                    return await self._stream(exchange, response, first, send)
            response = first
        if not isinstance(response, Exception):
            await send_response(send, response)
            return "ok"
        exchange.release_body()
        await self.registry.refusal_pace.wait(response, exchange.call.caller)
        if exchange.is_disconnected:
            raise Cancelled("the caller left") from response
        fault = self.fault(response, exchange.call)
        headers = (JSON_TYPE, *fault.headers)
        await send_response(send, Response(self.body_of(fault), fault.status, headers))
        return fault.reason

    async def _handle(self, exchange: Exchange) -> Response | EventStream:
        if (overload := self.registry.overload).is_refusing:
            exchange.record.model = self.registry.label(exchange.path.get("model", ""))
            exchange.check_size()  # first: what never fits is not to be sent again later
            overload.check(exchange.call)
        exchange.call.read_deadline(self.registry.settings.queue.default_timeout_s)
        if PRIORITY_HEADER in exchange.call:
            exchange.call.read_priority()
        if exchange.call.usage is not None:
            exchange.call.usage.begin_request()
        return await self.handler(exchange)

    async def _stream(
        self, exchange: Exchange, stream: EventStream, first: bytes, send: Send
    ) -> str:
        headers = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in stream.headers]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": first, "more_body": True})
        interval_s = self.registry.settings.server.stream_comment_s
        body = StreamBody(send, exchange.writer)
        if stream.is_direct:
            exchange.call.writer = body
        failure = await result_or_error(body.send_all(stream.events, interval_s))
        reason, last = "ok", stream.last_event
        if failure is not None:  # the status is already sent: report it in the stream
            fault = self.fault(failure, exchange.call)
            reason, last = fault.reason, stream.encode_error(fault)
        await send({"type": "http.response.body", "body": last})
        return reason

    def fault(self, error: Exception, call: Call) -> Fault:
        status = self.registry.settings.queue.overload_status
        return fault_of(error, overload_status=status, request_id=call.request_id)
