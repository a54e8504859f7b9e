"""Passes gRPC calls on to the model's server: any method, unary or streamed, as messages of which
nothing is read but the mark of the last response to a request of a V2 stream.

grpc.aio speaks HTTP/2 (h2c) on both sides, with its flow control, deadlines and cancellation. While
a call is held its messages are not read, so that it holds no more than its flow-control window.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import grpc

from predictors.activator.fields import Metadata, passed_metadata, request_metadata
from predictors.activator.http_proxy import broken_off
from predictors.activator.proxying import Proxying, first_of
from predictors.errors import ServingError, TooLarge
from predictors.protocol.addresses import peer_address
from predictors.protocol.call import Call
from predictors.protocol.faults import fault_of
from predictors.protocol.grpc.arriving import ArrivingMessages, StreamMessages, receive_message
from predictors.protocol.grpc.connection_options import MAX_STREAMS, server_options
from predictors.protocol.grpc.methods import abort, start_call
from predictors.protocol.grpc.open_calls import OpenCalls
from predictors.protocol.grpc.port import GrpcListener, start_listening
from predictors.protocol.grpc.unread_answers import UnreadAnswers, peer_of_task
from predictors.protocol.v2.stream_responses import PATH, ends_request
from predictors.settings import Settings

PING_MS = 20_000
"""A node that is gone is noticed after about twice this."""
REFLECTION = "ServerReflectionInfo"
"""A method, of two services, with one response to each request."""
BROKEN_CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)


class GrpcUpstream:
    """Connections to the model's gRPC port, one per call, so that a Service spreads calls over the
    pods. Event loop only."""

    def __init__(self, target: str, connect_timeout_s: float) -> None:
        self._target = target
        self._connect_timeout_s = connect_timeout_s

    async def connect(self) -> grpc.aio.Channel | None:
        """A channel that has a connection; None if there is none in time."""
        channel = grpc.aio.insecure_channel(
            self._target,
            options=[
                ("grpc.use_local_subchannel_pool", 1),  # channels of one process share otherwise
                ("grpc.enable_http_proxy", 0),
                ("grpc.enable_retries", 0),
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.keepalive_time_ms", PING_MS),
                ("grpc.keepalive_timeout_ms", PING_MS),
            ],
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._connect_timeout_s):
                if await _is_connected(channel):
                    return channel
        await channel.close()
        return None


async def _is_connected(channel: grpc.aio.Channel) -> bool:
    """Wait for the first attempt to connect."""
    state = channel.get_state(try_to_connect=True)
    while state in (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING):
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)
    return bool(state is grpc.ChannelConnectivity.READY)


class GrpcProxy(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The handler of every method, for at most `most` calls at a time. A unary call is a stream of
    one message on the wire."""

    def __init__(
        self, proxying: Proxying, upstream: GrpcUpstream, most: int, settings: Settings
    ) -> None:
        self._proxying = proxying
        self._upstream = upstream
        # each takes a connection to the model
        self.calls = OpenCalls(most, settings.server.write_timeout_s)
        places = settings.server.max_arriving_messages
        self._arriving = ArrivingMessages(places, most_of_one=places)  # one gateway sends all
        self._most_bytes = settings.activator.max_held_bytes

    def service(self, details: Any) -> Any:
        """Called by gRPC for each call."""
        return grpc.stream_stream_rpc_method_handler(partial(self._run, details.method))

    async def _run(self, method: str, requests: AsyncIterator[bytes], context: Any) -> None:
        call = start_call(context)
        fault = None
        try:
            refusal = self.calls.begin("", context)
            with self._proxying.request("v2_grpc"):
                if refusal is not None:
                    raise refusal
                async with self.calls.answers.limited(context):
                    await self._pass_on(method, context, call)
                self.calls.answers.begin(context)  # its status
        except ServingError as error:
            fault = fault_of(error, request_id=call.request_id)
        if fault is not None:
            await abort(context, fault, call)

    async def _pass_on(self, method: str, context: Any, call: Call) -> None:
        """Hold the call until the model can be reached, and pass it on."""
        began = time.monotonic()
        channel = await self._proxying.reach(call, self._upstream.connect)
        try:
            given = context.invocation_metadata() or ()
            peer, waited_s = peer_address(peer_of_task.get()), time.monotonic() - began
            fields = request_metadata(given, call.request_id, peer, waited_s)
            await self._forward(channel, method, fields, context)
        finally:
            await channel.close()

    async def _forward(
        self,
        channel: grpc.aio.Channel,
        method: str,
        fields: Metadata,
        context: Any,
    ) -> None:
        """Pass messages both ways, then status and trailing metadata. Raises `UpstreamFailed`, and
        as `ArrivingMessages.read` and `WaitingRoom.charge`."""
        call = channel.stream_stream(method)(metadata=fields, timeout=context.time_remaining())
        try:
            receive = partial(receive_message, context)
            caller = peer_address(peer_of_task.get())
            messages = StreamMessages(self._arriving, receive, lambda: caller)
            answer = _answer(method, call, context, messages, self.calls.answers)
            await first_of(answer, self._send(call, messages))
        finally:
            call.cancel()

    async def _send(self, call: Any, messages: StreamMessages) -> None:
        """Pass the caller's messages on. Ends by raising or by being cancelled: an end of the call
        is no failure here, its status says why."""
        with contextlib.suppress(grpc.RpcError, grpc.aio.InternalError, asyncio.InvalidStateError):
            await call.wait_for_connection()
            async for message in messages:
                with self._counted(message):
                    # not `call.write`: if the model's server has answered without reading, that
                    # replaces the server's status by "Internal error from Core"
                    await call._cython_call.send_serialized_message(message)
                del message  # else it is held while the next one is waited for
            await call.done_writing()
        await asyncio.Event().wait()

    @contextlib.contextmanager
    def _counted(self, message: bytes) -> Iterator[None]:
        """Count a message until it is sent, with the bodies that wait. Raises `Overloaded`, and
        `TooLarge` for one that is over the limit alone."""
        room = self._proxying.room
        if len(message) > self._most_bytes:
            raise TooLarge(
                f"the message has {len(message)} bytes; at most {self._most_bytes} are passed on"
            )
        room.charge(len(message))
        try:
            yield
        finally:
            room.release(len(message))


def _ends_request(method: str, message: bytes) -> bool:
    """True if `message` is known to be the last of the answer to a request. Of a method that is
    not known an answer ends with the call."""
    if method == PATH:
        return ends_request(message)
    return method.rpartition("/")[2] == REFLECTION


async def _answer(
    method: str, call: Any, context: Any, messages: StreamMessages, answers: UnreadAnswers
) -> None:
    """Pass the model's answer to `messages` on. Raises `UpstreamFailed`."""
    first = passed_metadata(await call.initial_metadata() or ())
    await context.send_initial_metadata(first)
    with contextlib.suppress(grpc.aio.AioRpcError):  # the status below
        async for message in call:
            await answers.write(context, message)
            if _ends_request(method, message):
                messages.answered()
    code = await call.code()
    trailing = passed_metadata(await call.trailing_metadata() or ())
    if code in BROKEN_CODES and not trailing:
        raise broken_off()  # gRPC's own words, which have addresses
    context.set_trailing_metadata(tuple(trailing))
    context.set_code(code)
    context.set_details(await call.details() or "")


async def start_grpc_proxy(
    handler: GrpcProxy, settings: Settings, on_lost: Callable[[], object]
) -> GrpcListener:
    """The started server. `on_lost` is that of `GrpcListener`. Raises `InvalidSetting` if it can't
    listen."""
    own = settings.server
    most = max(MAX_STREAMS, settings.activator.max_held)
    server = grpc.aio.server(
        handlers=[handler],
        options=[
            *server_options(own, most),
            ("grpc.http2.bdp_probe", 0),  # windows stay small: calls are held by the hundred
        ],
    )
    return await start_listening(server, own, on_lost, handler.calls)
