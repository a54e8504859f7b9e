"""The gRPC server of models: its services, and the keys that they ask for."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from predictors.protocol.certificates import Certificates
from predictors.protocol.grpc.connection_options import server_options
from predictors.protocol.grpc.health import add_health
from predictors.protocol.grpc.key_check import key_checks
from predictors.protocol.grpc.open_calls import MOST_CALLS, OpenCalls
from predictors.protocol.grpc.port import GrpcListener, start_listening
from predictors.protocol.grpc.reading import MessageReader
from predictors.protocol.grpc.reflection import add_reflection
from predictors.protocol.grpc.refused_calls import RefusedCalls
from predictors.protocol.http.access import is_offered
from predictors.protocol.registry import Registry
from predictors.protocol.v2.grpc import SERVICE, add_inference
from predictors.protocol.v2.proto_file import inference_file


async def start_grpc(
    registry: Registry, on_lost: Callable[[], object], certificates: Certificates | None = None
) -> GrpcListener:
    """The started server, with TLS where there are `certificates`. `on_lost` is that of
    `GrpcListener`. Raises `InvalidSetting` if it can't listen."""
    own = registry.settings.server
    calls = OpenCalls(MOST_CALLS, own.write_timeout_s)
    server = grpc.aio.server(
        interceptors=key_checks(registry.callers, calls),
        options=server_options(own),
    )
    refused = RefusedCalls(registry)
    reader = MessageReader(registry.arriving, registry.callers, calls, refused)
    add_inference(server, reader, registry, refused)
    add_health(server, reader, registry, SERVICE)
    if is_offered(own.grpc_reflection, registry.settings):
        add_reflection(server, reader, inference_file())
    server.add_generic_rpc_handlers((reader.unknown(),))
    return await start_listening(server, own, on_lost, calls, certificates)
