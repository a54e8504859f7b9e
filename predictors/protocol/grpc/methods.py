"""gRPC methods that get the raw message: a wrong one is refused in plain words, a large one before
it is parsed.

Generated handlers let gRPC parse: garbage is UNKNOWN with the name of a Python class and a
traceback in the log, and a message for a probe may be as large as one for inference. The request id
goes into the trailing metadata of every answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from predictors.errors import InvalidRequest, TooLarge
from predictors.observe import logs
from predictors.protocol.call import REQUEST_ID_HEADER, Call
from predictors.protocol.faults import Fault, fault_of
from predictors.protocol.outcomes import result_or_error

DETAILS_KEY = "grpc-status-details-bin"
RETRY_KEY = "retry-after"
RETRY_INFO = b"type.googleapis.com/google.rpc.RetryInfo"
MAX_SMALL_BYTES = 64 * 1024
"""Of a request that holds names at most."""


class RawMessage:
    """The bytes of a request, for whoever takes them first.

    gRPC keeps a call's arguments, and the frames that its failure passed through, until the garbage
    collector comes by. They hold this instead of 64 MB.
    """

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def take(self) -> bytes:
        """The bytes; empty from then on."""
        raw, self._raw = self._raw, b""
        return raw


Method = Callable[[RawMessage, Any], Awaitable[Any]]  # request and context to response message
Stream = Callable[[RawMessage, Any], AsyncIterator[Any]]


def add_service(
    server: grpc.aio.Server,
    service: str,
    methods: Mapping[str, Method],
    streams: Mapping[str, Stream] | None = None,
) -> None:
    """Serve these methods, which answer once, and `streams`, which answer many times."""
    once, often = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
    handlers = {
        **{name: once(method, RawMessage, _serialised) for name, method in methods.items()},
        **{
            name: often(stream, RawMessage, _serialised) for name, stream in (streams or {}).items()
        },
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


def parse_small(kind: Any, message: RawMessage) -> Any:
    """A message of a few names; raises `TooLarge` before it parses, `InvalidRequest`."""
    raw = message.take()
    if len(raw) > MAX_SMALL_BYTES:
        raise TooLarge(
            f"a {kind.DESCRIPTOR.name} of {len(raw)} bytes; at most {MAX_SMALL_BYTES} are read"
        )
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise InvalidRequest(f"the message is not a valid {kind.DESCRIPTOR.name}") from error


async def answered(work: Awaitable[Any], context: Any) -> Any:
    """The answer of a cheap method; a failure ends the call with its status."""
    call = call_of(context)
    answer = await result_or_error(work)
    if isinstance(answer, Exception):
        fault, answer = fault_of(answer, request_id=call.request_id), None
        await abort(context, fault, call)
    name_call(context, call)
    return answer


async def abort(context: Any, fault: Fault, call: Call) -> None:
    """End the call with the fault's status; raises. gRPC keeps the frames of whoever calls this:
    they should not refer to the failure any more, whose own frames hold the request."""
    trailing: list[tuple[str, str | bytes]] = [(REQUEST_ID_HEADER, call.request_id)]
    if fault.retry_after_s is not None:
        trailing.append((RETRY_KEY, str(fault.retry_after_s)))
        trailing.append((DETAILS_KEY, status_details(fault)))
    await context.abort(fault.grpc_code, fault.message, tuple(trailing))


def name_call(context: Any, call: Call) -> None:
    """Say the request's id with the answer."""
    context.set_trailing_metadata(((REQUEST_ID_HEADER, call.request_id),))


def call_of(context: Any) -> Call:
    """The call's headers and id; what the present task logs from now on has the id."""
    pairs = context.invocation_metadata() or ()
    headers = {key: value for key, value in pairs if isinstance(value, str)}
    call = Call(headers, protocol="v2_grpc")
    logs.request_id.set(call.request_id)  # the task is this call's own
    return call


def _serialised(message: Any) -> bytes:
    raw: bytes = message.SerializeToString()
    return raw


def status_details(fault: Fault) -> bytes:
    """A serialised `google.rpc.Status`: code, message, and a RetryInfo if the fault has one."""
    code: int = fault.grpc_code.value[0]
    status = _number(1, code) + _field(2, fault.message.encode("utf-8"))
    if fault.retry_after_s is not None:
        duration = _number(1, fault.retry_after_s)  # google.protobuf.Duration.seconds
        retry_info = _field(1, duration)
        status += _field(3, _field(1, RETRY_INFO) + _field(2, retry_info))  # google.protobuf.Any
    return status


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
