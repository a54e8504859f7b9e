"""The gRPC server: its port, the options of its connections, and its services."""

from __future__ import annotations

import grpc

from predictors.protocol.certificates import Certificates
from predictors.protocol.grpc.connection_options import server_options
from predictors.protocol.grpc.health import add_health
from predictors.protocol.grpc.key_check import key_checks
from predictors.protocol.grpc.reflection import add_reflection
from predictors.protocol.http.access import is_offered
from predictors.protocol.http.listening import grpc_fault
from predictors.protocol.registry import Registry
from predictors.protocol.v2.grpc import SERVICE, add_inference
from predictors.protocol.v2.proto_file import inference_file


async def start_grpc(
    registry: Registry, certificates: Certificates | None = None
) -> tuple[grpc.aio.Server, int]:
    """The started server and its port, with TLS where there are `certificates`. Raises
    `InvalidSetting` if it can't listen."""
    own = registry.settings.server
    server = grpc.aio.server(
        interceptors=key_checks(registry.callers),
        options=server_options(own.max_message_bytes),
    )
    add_inference(server, registry)
    add_health(server, registry, SERVICE)
    if is_offered(own.grpc_reflection, registry.settings):
        add_reflection(server, inference_file())
    host = f"[{own.host}]" if ":" in own.host else own.host
    address = f"{host}:{own.grpc_port}"
    try:
        if certificates is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, certificates.grpc_credentials())
    except RuntimeError as error:
        raise grpc_fault(own.host, own.grpc_port) from error
    await server.start()
    return server, port
