"""`grpc.health.v1` for Kubernetes' gRPC probes and client-side load balancing. Knows the registry.

The service name "" and the inference service are the whole server; each model has its own name, so
that a probe can wait for one of several. NOT_SERVING until warm, and while draining.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from predictors.protocol.registry import Registry

WATCH_S = 1.0  # how often a watched state is looked at: engines get ready on threads of their own

_Status = health_pb2.HealthCheckResponse


def add_health(server: grpc.aio.Server, registry: Registry, overall: str) -> None:
    """Serve `grpc.health.v1.Health`; `overall` is one more name for the whole server."""
    servicer = HealthServicer(registry, frozenset({"", overall}))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Check and Watch. Event loop only."""

    def __init__(self, registry: Registry, overall: frozenset[str]) -> None:
        self._registry = registry
        self._overall = overall

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The state now; NOT_FOUND for a name that is neither the server nor a model."""
        status = await self._status(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return _Status(status=status)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """The state now and whenever it has changed; SERVICE_UNKNOWN for an unknown name."""
        last: int | None = None
        while True:
            status = await self._status(request.service)
            if status != last:
                last = status
                yield _Status(status=status)
            await asyncio.sleep(WATCH_S)

    async def _status(self, service: str) -> int:
        if service in self._overall:
            ready = await self._registry.all_ready()
        elif service in self._registry.models:
            ready = await self._registry.is_ready(service)
        else:
            return int(_Status.SERVICE_UNKNOWN)
        return int(_Status.SERVING if ready else _Status.NOT_SERVING)
