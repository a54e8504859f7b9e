"""Options of gRPC servers that bound connections, calls and messages, for servers of models and the
activator alike. Imports no service.
"""

from __future__ import annotations

from predictors.protocol.http.connection_limits import max_grpc_connections

# A client that pings every 10 s is sometimes early; the third early ping ends its connection.
MIN_PING_INTERVAL_MS = 5_000
HANDSHAKE_MS = 10_000  # for a connection that does not start with HTTP/2, or with TLS
MAX_STREAMS = 256
"""Concurrent calls of one connection. gRPC refuses those beyond, and some at the limit, instead of
leaving them in the client: it counts calls that have ended until their memory is free."""


def server_options(max_message_bytes: int, max_streams: int = MAX_STREAMS) -> list[tuple[str, int]]:
    """Arguments of `grpc.aio.server`: `max_message_bytes` bounds what is received."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # a second process on this port must fail, not share it
        ("grpc.max_concurrent_streams", max_streams),
        ("grpc.max_allowed_incoming_connections", max_grpc_connections()),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
    ]
