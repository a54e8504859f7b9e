"""`grpc.health.v1` for Kubernetes' gRPC probes and client-side load balancing. Knows the registry.

The service name "" and the inference service are the whole server; each model has its own name, so
that a probe can wait for one of several. NOT_SERVING until warm, and while draining.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from predictors.errors import NotFound, ServingError
from predictors.protocol.faults import fault_of
from predictors.protocol.grpc.methods import (
    RawMessage,
    abort,
    add_service,
    answered,
    call_of,
    name_call,
    parse_small,
)
from predictors.protocol.registry import Registry

WATCH_S = 1.0  # how often a watched state is looked at: engines get ready on threads of their own

SERVICE = "grpc.health.v1.Health"

_Request = health_pb2.HealthCheckRequest
_Status = health_pb2.HealthCheckResponse


def add_health(server: grpc.aio.Server, registry: Registry, overall: str) -> None:
    """Serve `grpc.health.v1.Health`; `overall` is one more name for the whole server."""
    health = Health(registry, frozenset({"", overall}))
    add_service(server, SERVICE, {"Check": health.check}, {"Watch": health.watch})


class Health:
    """Check and Watch. Event loop only."""

    def __init__(self, registry: Registry, overall: frozenset[str]) -> None:
        self._registry = registry
        self._overall = overall

    async def check(self, message: RawMessage, context: Any) -> Any:
        """The state now; NOT_FOUND for a name that is neither the server nor a model."""
        return await answered(self._check(message), context)

    async def watch(self, message: RawMessage, context: Any) -> AsyncIterator[Any]:
        """The state now and whenever it has changed; SERVICE_UNKNOWN for an unknown name."""
        call = call_of(context)
        try:
            service = _service(message)
        except ServingError as error:
            await abort(context, fault_of(error), call)
            return
        name_call(context, call)
        last: int | None = None
        while True:
            status = await self._status(service)
            if status != last:
                last = status
                yield _Status(status=status)
            await asyncio.sleep(WATCH_S)

    async def _check(self, message: RawMessage) -> Any:
        status = await self._status(_service(message))
        if status == _Status.SERVICE_UNKNOWN:
            raise NotFound("there is no such service")
        return _Status(status=status)

    async def _status(self, service: str) -> int:
        if service in self._overall:
            ready = await self._registry.all_ready()
        elif service in self._registry.models:
            ready = await self._registry.is_ready(service)
        else:
            return int(_Status.SERVICE_UNKNOWN)
        return int(_Status.SERVING if ready else _Status.NOT_SERVING)


def _service(message: RawMessage) -> str:
    """The name that a request asks for; raises `InvalidRequest`."""
    return str(parse_small(_Request, message).service)
