"""`grpc.health.v1` for Kubernetes' gRPC probes and client-side load balancing.

The service names "" and the inference service stand for the whole server. Each model has its own
name, so that a probe can wait for one of several. The status is NOT_SERVING until warm and while
draining.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from predictors.errors import NotFound
from predictors.protocol.call import Call
from predictors.protocol.grpc.methods import RawMessage, parse_small, start_stream
from predictors.protocol.grpc.reading import MessageReader, ReadMessage, add_service
from predictors.protocol.registry import Registry

WATCH_S = 1.0  # polling interval of watched states, which change on engine threads

SERVICE = "grpc.health.v1.Health"

_Request = health_pb2.HealthCheckRequest
_Status = health_pb2.HealthCheckResponse


def add_health(
    server: grpc.aio.Server, reader: MessageReader, registry: Registry, overall: str
) -> None:
    """Serve `grpc.health.v1.Health`. `overall` is one more name for the whole server."""
    health = HealthMethods(registry, frozenset({"", overall}))
    cheap, streams = {"Check": health.check}, {"Watch": health.watch}
    add_service(server, reader, SERVICE, cheap=cheap, streams=streams)


class HealthMethods:
    """Methods of the health service. Event loop only."""

    def __init__(self, registry: Registry, overall: frozenset[str]) -> None:
        self._registry = registry
        self._overall = overall

    async def check(self, message: RawMessage, call: Call) -> Any:
        """The current status. Raises `NotFound` for a name that is neither the server nor a
        model."""
        status = await self._status(_service(message))
        if status == _Status.SERVICE_UNKNOWN:
            raise NotFound("there is no such service")
        return _Status(status=status)

    async def watch(self, read: ReadMessage, context: Any) -> AsyncIterator[Any]:
        """The current status, and each change. SERVICE_UNKNOWN for an unknown name."""
        start_stream(context)
        service = _service(await read())
        last: int | None = None
        while True:
            status = await self._status(service)
            if status != last:
                last = status
                yield _Status(status=status)
            await asyncio.sleep(WATCH_S)

    async def _status(self, service: str) -> int:
        if service in self._overall:
            ready = await self._registry.all_ready()
        elif service in self._registry.names:
            ready = await self._registry.is_ready(self._registry.find(service).name)
        else:
            return int(_Status.SERVICE_UNKNOWN)
        return int(_Status.SERVING if ready else _Status.NOT_SERVING)


def _service(message: RawMessage) -> str:
    return str(parse_small(_Request, message).service)
