"""V2 over gRPC: the inference service with health, metadata, inference, load and unload.

It implements its own methods over KServe's messages. KServe's methods reload a model that is not
ready on the event loop, report "not ready" as UNKNOWN, and lose double parameters. Errors have the
same messages and reasons as over REST.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import grpc

from predictors import __version__
from predictors.errors import DeadlineExceeded, NotSupported
from predictors.protocol.addresses import peer_address
from predictors.protocol.bytes_in_flight import Charge
from predictors.protocol.call import Call, check_single
from predictors.protocol.faults import Fault, fault_of
from predictors.protocol.grpc.key_check import adopt_key
from predictors.protocol.grpc.methods import (
    RawMessage,
    abort,
    parse_small,
    set_request_id,
    start_call,
)
from predictors.protocol.grpc.reading import CheapMethod, MessageReader, ReadMessage, add_service
from predictors.protocol.grpc.refused_calls import RefusedCalls
from predictors.protocol.grpc.unread_answers import peer_of_task
from predictors.protocol.http.bodies import SHARED_BYTES, fail_at
from predictors.protocol.kserve_sdk import pb
from predictors.protocol.outcomes import RequestRecord, result_or_error
from predictors.protocol.registry import Registry
from predictors.protocol.serves import Served
from predictors.protocol.tasks import MESSAGE_FACTOR, decode_large
from predictors.protocol.v2.grpc_stream import StreamMethod
from predictors.protocol.v2.rest import (
    NAME,
    REPOSITORY_OFF,
    check_outputs,
    complete,
    extensions,
    metadata,
)
from predictors.protocol.v2.stream_responses import METHOD
from predictors.protocol.v2.tensors import pack_tensor
from predictors.protocol.v2.values import Scalar, V2Request, V2Response, num_bytes
from predictors.protocol.v2.wire_json import is_file
from predictors.protocol.v2.wire_proto import decode_proto_request, model_of

INLINE_BYTES = 16 * 1024  # largest message decoded on the event loop: 8,000 fields at most
LEAST_EARLY_S, EARLY = 0.05, 0.02
"""How much sooner than ours a caller's deadline may be, in seconds and as a part of all."""

T = TypeVar("T")

CheapAnswer = Callable[[Any, Call], Awaitable[Any]]  # parsed message to response message

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


def add_inference(
    server: grpc.aio.Server, reader: MessageReader, registry: Registry, refused: RefusedCalls
) -> None:
    methods = InferenceMethods(registry, refused)
    streams = {METHOD: StreamMethod(registry, methods).model_stream_infer}
    own = {"ModelInfer": methods.model_infer}
    add_service(server, reader, SERVICE, own, methods.cheap(), duplex=streams)


class InferenceMethods:
    """Methods of the inference service. Event loop only."""

    def __init__(self, registry: Registry, refused: RefusedCalls) -> None:
        self._registry = registry
        self._refused = refused

    def cheap(self) -> dict[str, CheapMethod]:
        """The methods that need no model, by their names in the protocol."""
        found: dict[str, tuple[Any, CheapAnswer]] = {
            "ServerLive": (pb.ServerLiveRequest, self._server_live),
            "ServerReady": (pb.ServerReadyRequest, self._server_ready),
            "ServerMetadata": (pb.ServerMetadataRequest, self._server_metadata),
            "ModelReady": (pb.ModelReadyRequest, self._model_ready),
            "ModelMetadata": (pb.ModelMetadataRequest, self._model_metadata),
            "RepositoryModelLoad": (pb.RepositoryModelLoadRequest, self._load),
            "RepositoryModelUnload": (pb.RepositoryModelUnloadRequest, self._unload),
        }
        return {name: partial(self._cheap, *each) for name, each in found.items()}

    async def _cheap(self, kind: Any, answer: CheapAnswer, message: RawMessage, call: Call) -> Any:
        adopt_key(self._registry.callers, call)
        return await answer(parse_small(kind, message), call)

    # -- health and metadata ---------------------------------------------------------------------
    async def _server_live(self, request: Any, call: Call) -> Any:
        return pb.ServerLiveResponse(live=self._registry.is_live())

    async def _server_ready(self, request: Any, call: Call) -> Any:
        return pb.ServerReadyResponse(ready=await self._registry.all_ready())

    async def _server_metadata(self, request: Any, call: Call) -> Any:
        found = extensions(self._registry)
        return pb.ServerMetadataResponse(name=NAME, version=__version__, extensions=found)

    async def _model_ready(self, request: Any, call: Call) -> Any:
        model = self._registry.find(request.name, request.version)
        return pb.ModelReadyResponse(ready=await self._registry.is_ready(model.name))

    async def _model_metadata(self, request: Any, call: Call) -> Any:
        model = self._registry.find(request.name, request.version, call=call)
        return pb.ModelMetadataResponse(**metadata(model) | {"name": request.name})

    async def _load(self, request: Any, call: Call) -> Any:
        self._check_repository()
        self._registry.find(request.model_name, call=call)
        self._registry.restore(request.model_name)
        return pb.RepositoryModelLoadResponse(model_name=request.model_name, isLoaded=True)

    async def _unload(self, request: Any, call: Call) -> Any:
        self._check_repository()
        self._registry.find(request.model_name, call=call)
        self._registry.withdraw(request.model_name)
        return pb.RepositoryModelUnloadResponse(model_name=request.model_name, isUnloaded=True)

    def _check_repository(self) -> None:
        if not self._registry.settings.server.repository_api:
            raise NotSupported(REPOSITORY_OFF)

    # -- inference -------------------------------------------------------------------------------
    async def model_infer(self, read: ReadMessage, context: Any) -> Any:
        """gRPC cancels it when the client disconnects or its deadline passes."""
        call = start_call(context)

        async def fail(fault: Fault) -> None:
            await abort(context, fault, call)

        async def work(record: RequestRecord) -> Any:
            message = await read()
            return await self._infer(record, message, call, context.time_remaining())

        answer = await self.recorded("ModelInfer", call, context, work, fail)
        set_request_id(context, call)
        return answer

    async def recorded(
        self,
        method: str,
        call: Call,
        context: Any,
        work: Callable[[RequestRecord], Awaitable[T]],
        fail: Callable[[Fault], Awaitable[None]],
    ) -> T | None:
        """The result of one inference, which is counted and logged once. `fail` gets its failure
        and tells the client."""
        self._registry.callers.name(call, peer_address(peer_of_task.get()))
        adopt_key(self._registry.callers, call)
        record, reason = RequestRecord("v2_grpc", "infer", call), "ok"
        given = context.time_remaining()
        try:
            answer = await result_or_error(work(record))
            if not isinstance(answer, Exception):
                return answer
            await self._registry.refusal_pace.wait(answer, call.caller)
            fault = self.fault(answer, call)
            reason = fault.reason
            del answer  # its traceback refers to frames that hold the message
            record.end(reason)  # count it before the client sees the error
            await fail(fault)
            return None
        except asyncio.CancelledError:
            reason = "deadline" if _is_over(context.time_remaining(), given) else "cancelled"
            raise
        finally:
            record.end(reason)
            self._refused.log(method, record, reason, call)

    async def _infer(
        self, record: RequestRecord, message: RawMessage, call: Call, remaining: float | None
    ) -> Any:
        raw = message.release()
        with self.charged(raw):
            model = self.admit(record, raw, call, remaining)
            try:
                values = await self.decode(raw, model, call)
                return await self.encode(await model.infer(values, call), values, call)
            finally:
                self._registry.end_request()

    # -- parts of an inference, for `StreamMethod` too -------------------------------------------
    @contextmanager
    def charged(self, raw: bytes) -> Iterator[None]:
        """The message counts among the bytes in flight. Raises `Overloaded`, and `TooLarge` for one
        that never fits."""
        self._registry.bytes_in_flight.check_one(len(raw))
        self._registry.overload.check_size(len(raw))
        charge = Charge(self._registry.bytes_in_flight)
        try:
            charge.add(len(raw))
            yield
        finally:
            self._registry.release_bytes(charge)

    def admit(
        self, record: RequestRecord, raw: bytes, call: Call, remaining: float | None
    ) -> Served:
        """The model, with one more request in flight, which the caller must end."""
        check_single(call.repeated)
        name, version = model_of(raw)
        model = self._registry.find(name, version, call=call)
        record.model = model.name
        call.read_deadline(self._registry.settings.queue.default_timeout_s)
        call.read_priority()
        if call.usage is not None:
            call.usage.begin_request()
        if remaining is not None:
            if remaining <= 0:
                raise DeadlineExceeded("the deadline had passed before the request was read")
            call.tighten(remaining)
        self._registry.begin_request(model.name)
        return model

    async def decode(self, raw: bytes, model: Served, call: Call) -> V2Request:
        self._registry.check_room(model, call)
        values = await self._decoded(raw, call)
        check_outputs(values, model)
        return values

    async def encode(self, answer: V2Response, values: V2Request, call: Call) -> Any:
        response = complete(answer, values, call)
        is_raw = values.binary_default and all(values.binary.values())
        if is_raw or num_bytes(response) <= INLINE_BYTES:
            return encode_proto_response(response, values)
        return await self._registry.in_thread(encode_proto_response, response, values)

    async def _decoded(self, raw: bytes, call: Call) -> V2Request:
        if len(raw) <= INLINE_BYTES:
            return decode_proto_request(raw)
        async with fail_at(call.deadline, "the deadline passed while the message was read"):
            if len(raw) <= SHARED_BYTES:
                return await self._registry.in_thread(decode_proto_request, raw)
            workers = self._registry.workers
            return await decode_large(workers, decode_proto_request, raw, factor=MESSAGE_FACTOR)

    def fault(self, error: Exception, call: Call) -> Fault:
        status = self._registry.settings.queue.overload_status
        return fault_of(error, overload_status=status, request_id=call.request_id)


def encode_proto_response(response: V2Response, request: V2Request) -> Any:
    """All tensors are in raw contents: tritonclient with numpy 2 cannot read BYTES from others.
    Files are base64 in there where the request asks for that."""
    message = pb.ModelInferResponse(
        model_name=response.model, model_version=response.version, id=response.id
    )
    for tensor in response.outputs:
        is_raw = request.binary.get(tensor.name, request.binary_default)
        if not is_raw and is_file(tensor):
            rows: list[bytes] = list(tensor.data)  # type: ignore[arg-type]
            parameters = {**tensor.parameters, "encoding": "base64"}
            data = [base64.b64encode(row) for row in rows]
            tensor = replace(tensor, data=data, parameters=parameters)
        output = message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        write_parameters(output.parameters, tensor.parameters)
        message.raw_output_contents.append(pack_tensor(tensor))
    write_parameters(message.parameters, response.parameters)
    return message


def write_parameters(target: Any, parameters: Mapping[str, Scalar]) -> None:
    """Fill a map of `InferParameter`, which has int64, bool and string only."""
    for name, value in parameters.items():
        if isinstance(value, bool):
            target[name].bool_param = value
        elif isinstance(value, int):
            target[name].int64_param = value
        else:
            target[name].string_param = str(value)


def _is_over(remaining: float | None, given: float | None) -> bool:
    """True if a call of `given` seconds that was cancelled with `remaining` ones left has met its
    deadline. The caller's comes before ours, by the way of the call, and gRPC rounds it up here."""
    if remaining is None or given is None:
        return False
    return remaining <= max(LEAST_EARLY_S, EARLY * given)
