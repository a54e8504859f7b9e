"""V2 gRPC: the inference service and `grpc.health.v1`. Knows no model beyond `Served`.

Our own servicer over KServe's messages: its own reloads an unready model on the event loop, turns
"not ready" into UNKNOWN and drops doubles. What a caller does wrong here has the same words and the
same reasons as over REST. The request id goes into the trailing metadata of every answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any

import grpc

from predictors import __version__, logs
from predictors.errors import DeadlineExceeded, NotSupported
from predictors.protocol.call import REQUEST_ID_HEADER, Call
from predictors.protocol.faults import Fault, Tally, attempt, fault_of
from predictors.protocol.grpc_status import status_details
from predictors.protocol.kserve_sdk import pb, pb_grpc
from predictors.protocol.registry import Registry
from predictors.protocol.v2_proto import decode_request
from predictors.protocol.v2_proto_response import encode_response
from predictors.protocol.v2_rest import (
    EXTENSIONS,
    NAME,
    REPOSITORY_OFF,
    check_outputs,
    complete,
    metadata,
)

access = logging.getLogger("predictors.access")

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
DETAILS_KEY = "grpc-status-details-bin"
RETRY_KEY = "retry-after"


def add_inference(server: grpc.aio.Server, registry: Registry) -> None:
    """Serve `inference.GRPCInferenceService`."""
    servicer = InferenceServicer(registry)
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)


class InferenceServicer(pb_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The service's methods, named as its protocol names them. Event loop only."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._logs = registry.settings.server.access_log

    # -- health and metadata ---------------------------------------------------------------------
    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        """False once an engine is dead or stalled."""
        return pb.ServerLiveResponse(live=self._registry.is_live())

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """True while every model is warm and the server is not shutting down."""
        return pb.ServerReadyResponse(ready=await self._registry.all_ready())

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Name, version, extensions."""
        return pb.ServerMetadataResponse(name=NAME, version=__version__, extensions=EXTENSIONS)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """True once this model is warm."""
        return await self._plain(self._model_ready(request), context)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Versions, inputs and outputs."""
        return await self._plain(self._model_metadata(request), context)

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Put a model back into service, where the operator allows it."""
        return await self._plain(self._load(request), context)

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Take a model out of service, where the operator allows it."""
        return await self._plain(self._unload(request), context)

    async def _model_ready(self, request: Any) -> Any:
        model = self._registry.find(request.name, request.version)
        return pb.ModelReadyResponse(ready=await self._registry.is_ready(model.name))

    async def _model_metadata(self, request: Any) -> Any:
        model = self._registry.find(request.name, request.version)
        return pb.ModelMetadataResponse(**metadata(model))

    async def _load(self, request: Any) -> Any:
        self._check_repository()
        self._registry.restore(request.model_name)
        return pb.RepositoryModelLoadResponse(model_name=request.model_name, isLoaded=True)

    async def _unload(self, request: Any) -> Any:
        self._check_repository()
        self._registry.withdraw(request.model_name)
        return pb.RepositoryModelUnloadResponse(model_name=request.model_name, isUnloaded=True)

    def _check_repository(self) -> None:
        if not self._registry.settings.server.repository_api:
            raise NotSupported(REPOSITORY_OFF)

    # -- inference -------------------------------------------------------------------------------
    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """One inference request; cancelled by gRPC when the client goes or its time is up."""
        call = _call(context)
        tally = Tally("v2_grpc", "infer", call)
        reason = "ok"
        try:
            answer = await attempt(self._infer(tally, request, call, context.time_remaining()))
            if isinstance(answer, Exception):
                fault = self._fault(answer, call)
                reason = fault.reason
                tally.end(reason)  # before the caller can know
                await _abort(context, fault, call)
            _name(context, call)
            return answer
        except asyncio.CancelledError:
            remaining = context.time_remaining()
            reason = "deadline" if remaining is not None and remaining <= 0 else "cancelled"
            raise
        finally:
            tally.end(reason)
            self._log(tally, reason, call)

    async def _infer(self, tally: Tally, request: Any, call: Call, remaining: float | None) -> Any:
        name = request.model_name
        model = self._registry.find(name, request.model_version)
        tally.model = name
        call.read_deadline(self._registry.settings.queue.default_timeout_s)
        if remaining is not None:
            if remaining <= 0:
                raise DeadlineExceeded("the deadline had passed before the request was read")
            call.tighten(remaining)
        self._registry.enter(name)
        try:
            values = decode_request(request.SerializeToString())
            check_outputs(values, model)
            response = await model.infer(values, call)
            return encode_response(complete(response, values, call))
        finally:
            self._registry.leave()

    # -- what every method shares ----------------------------------------------------------------
    async def _plain(self, work: Awaitable[Any], context: Any) -> Any:
        call = _call(context)
        answer = await attempt(work)
        if isinstance(answer, Exception):
            await _abort(context, self._fault(answer, call), call)
        _name(context, call)
        return answer

    def _fault(self, error: Exception, call: Call) -> Fault:
        status = self._registry.settings.queue.overload_status
        return fault_of(error, overload_status=status, request_id=call.request_id)

    def _log(self, tally: Tally, reason: str, call: Call) -> None:
        if self._logs:
            facts = {
                "model": tally.model,
                "reason": reason,
                "total_ms": round(tally.elapsed_s * 1000, 1),
                "request_id": call.request_id,
            }
            line = "ModelInfer %s %s %.1f ms %s"
            access.info(line, *facts.values(), extra={"method": "ModelInfer", **facts})


async def _abort(context: Any, fault: Fault, call: Call) -> None:
    """End the call with the fault's status; raises."""
    trailing: list[tuple[str, str | bytes]] = [(REQUEST_ID_HEADER, call.request_id)]
    if fault.retry_after_s is not None:
        trailing.append((RETRY_KEY, str(fault.retry_after_s)))
        trailing.append((DETAILS_KEY, status_details(fault)))
    await context.abort(fault.grpc_code, fault.message, tuple(trailing))


def _name(context: Any, call: Call) -> None:
    context.set_trailing_metadata(((REQUEST_ID_HEADER, call.request_id),))


def _call(context: Any) -> Call:
    pairs = context.invocation_metadata() or ()
    headers = {key: value for key, value in pairs if isinstance(value, str)}
    call = Call(headers, protocol="v2_grpc")
    logs.request_id.set(call.request_id)  # the task is this call's own
    return call
