"""Handlers of gRPC methods that read their messages themselves, within the bounds of
`ArrivingMessages` and `OpenCalls`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import grpc

from predictors.errors import InvalidRequest, NotSupported, ServingError
from predictors.observe import logs
from predictors.protocol.addresses import peer_address
from predictors.protocol.call import Call, check_single
from predictors.protocol.callers import Callers
from predictors.protocol.grpc.arriving import (
    AT_ONCE_S,
    ArrivingMessages,
    StreamMessages,
    receive_message,
)
from predictors.protocol.grpc.key_check import adopt_key
from predictors.protocol.grpc.methods import RawMessage, abort, set_request_id, start_call
from predictors.protocol.grpc.open_calls import OpenCalls
from predictors.protocol.grpc.refused_calls import OTHER, RefusedCalls
from predictors.protocol.grpc.unread_answers import peer_of_task
from predictors.protocol.outcomes import RequestRecord, result_or_error

ReadMessage = Callable[[], Awaitable[RawMessage]]
"""Reads the only message of a call. Raises the reason why it is refused."""
Method = Callable[[ReadMessage, Any], Awaitable[Any]]  # context to response message
CheapMethod = Callable[[RawMessage, Call], Awaitable[Any]]  # request to response message
Stream = Callable[[ReadMessage, Any], AsyncIterator[Any]]
Write = Callable[[bytes], Awaitable[None]]
"""Sends a serialised response. Waits while the caller does not read."""
Duplex = Callable[[StreamMessages, Any, Write], Awaitable[None]]  # requests and context


class MessageReader:
    """Makes handlers that read by `arriving`. Event loop only.

    All of them are handlers of streams for gRPC, which reads the message of others itself, with
    nothing that could end a message that never ends.
    """

    def __init__(
        self, arriving: ArrivingMessages, callers: Callers, calls: OpenCalls, refused: RefusedCalls
    ) -> None:
        self._arriving = arriving
        self._callers = callers
        self._calls = calls
        self._answers = calls.answers
        self._refused = refused

    def unary(self, name: str, method: Method) -> grpc.RpcMethodHandler:
        """Of one message and one response. The method reads the message and tells its failures."""

        async def handle(messages: object, context: Any) -> bytes:
            refusal = self._calls.begin(name, context)
            return self._sent(context, await method(partial(self._only, context, refusal), context))

        return grpc.stream_unary_rpc_method_handler(handle, RawMessage)

    def cheap(self, name: str, method: CheapMethod) -> grpc.RpcMethodHandler:
        """Of one message and one response, which needs no model. What the method raises ends the
        call."""

        async def work(context: Any, call: Call, refusal: ServingError | None) -> Any:
            check_single(call.repeated)
            return await method(await self._only_counted(context, refusal), call)

        async def handle(messages: object, context: Any) -> bytes:
            refusal = self._calls.begin(name, context)
            call = start_call(context)
            response = await result_or_error(work(context, call, refusal))
            if isinstance(response, Exception):
                fault = await self._refused.fault(response, name, call)
                response = None  # see `abort`
                await abort(context, fault, call)
            set_request_id(context, call)
            return self._sent(context, response)

        return grpc.stream_unary_rpc_method_handler(handle, RawMessage)

    def unknown(self) -> grpc.GenericRpcHandler:
        """Of calls whose methods are not there. To be registered last."""

        async def handle(messages: object, context: Any) -> None:
            refusal = self._calls.begin("", context)
            call = start_call(context)
            error = refusal or NotSupported("there is no such method")
            fault = await self._refused.fault(error, "", call)
            if refusal is None:
                RequestRecord("v2_grpc", OTHER).end(error.reason)
            await abort(context, fault, call)

        return _AnyMethod(grpc.stream_stream_rpc_method_handler(handle))

    def _sent(self, context: Any, response: Any) -> bytes:
        raw: bytes = response.SerializeToString()
        self._answers.begin(context, len(raw))
        return raw

    def streaming(self, name: str, method: Stream) -> grpc.RpcMethodHandler:
        """Of one message and many responses."""

        async def work(context: Any, write: Write, refusal: ServingError | None) -> None:
            read = partial(self._only_counted, context, refusal)
            async for response in method(read, context):
                await write(response.SerializeToString())

        return self._of_streams(name, work)

    def duplex(self, name: str, method: Duplex) -> grpc.RpcMethodHandler:
        """Of many messages and many responses. What reading raises ends the call, unless the method
        catches it. Reading a call that is refused raises the reason."""

        async def work(context: Any, write: Write, refusal: ServingError | None) -> None:
            await method(self._each(context, refusal), context, write)

        return self._of_streams(name, work)

    def _of_streams(self, name: str, work: Callable[..., Awaitable[None]]) -> grpc.RpcMethodHandler:
        async def run(context: Any, refusal: ServingError | None) -> None:
            async with self._answers.limited(context):
                await work(context, partial(self._answers.write, context), refusal)
            self._answers.begin(context)  # its status

        async def handle(messages: object, context: Any) -> None:
            refusal = self._calls.begin(name, context)
            error = await result_or_error(run(context, refusal))
            if error is None:
                return
            known_id, call = logs.request_id.get(), start_call(context)
            call.request_id = known_id or call.request_id  # that of the lines about it
            fault = await self._refused.fault(error, name, call)
            error = None  # see `abort`
            await abort(context, fault, call)

        return grpc.stream_stream_rpc_method_handler(handle, RawMessage)

    async def _only(self, context: Any, refusal: ServingError | None) -> RawMessage:
        if refusal is not None:
            raise refusal
        found: RawMessage | None = await self._arriving.read(
            partial(_receive_only, context), lambda: self._caller(context)
        )
        if found is not None:
            return found
        # a call that gRPC has ended has none either: this task is cancelled then
        await asyncio.sleep(AT_ONCE_S)
        raise InvalidRequest("the call has no message")

    async def _only_counted(self, context: Any, refusal: ServingError | None) -> RawMessage:
        """As `_only`, of a method whose answers are not counted. A call that ends before its
        message is there, by its caller or by gRPC for its size, is."""
        record = RequestRecord("v2_grpc", OTHER)
        try:
            return await self._only(context, refusal)
        except asyncio.CancelledError:
            record.end("cancelled")
            raise

    def _each(self, context: Any, refusal: ServingError | None) -> StreamMessages:
        given = partial(receive_message, context), lambda: self._caller(context)
        return StreamMessages(self._arriving, *given, refusal)

    def _caller(self, context: Any) -> str:
        call = start_call(context)
        self._callers.name(call, peer_address(peer_of_task.get()))
        adopt_key(self._callers, call)
        return call.caller


class _AnyMethod(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, handler: grpc.RpcMethodHandler) -> None:
        self._handler = handler

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return self._handler


async def _receive_only(context: Any) -> RawMessage | None:
    """The message of a call that may have one, once the caller has said that it was the last; None
    if there is none. Raises `InvalidRequest` if another one comes."""
    found: RawMessage | None = await receive_message(context)
    if found is None:
        return None
    second: RawMessage | None = await receive_message(context)
    if second is None:
        return found
    for each in (found, second):
        each.release()  # the exception keeps this frame
    raise InvalidRequest("the call has more than one message; this method takes one")


def add_service(
    server: grpc.aio.Server,
    reader: MessageReader,
    service: str,
    methods: Mapping[str, Method] | None = None,
    cheap: Mapping[str, CheapMethod] | None = None,
    streams: Mapping[str, Stream] | None = None,
    duplex: Mapping[str, Duplex] | None = None,
) -> None:
    """Register `methods` with one response each, `cheap` ones, which need no model, `streams` with
    many responses, and those of `duplex`, with many requests too."""
    handlers = {name: reader.unary(name, each) for name, each in (methods or {}).items()}
    handlers |= {name: reader.cheap(name, each) for name, each in (cheap or {}).items()}
    handlers |= {name: reader.streaming(name, each) for name, each in (streams or {}).items()}
    handlers |= {name: reader.duplex(name, each) for name, each in (duplex or {}).items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
