"""Options of gRPC servers that bound connections, calls and messages, for servers of models and the
activator alike. Imports no service.
"""

from __future__ import annotations

from predictors.protocol.http.connection_limits import max_grpc_connections
from predictors.settings import ServerSettings

# A client that pings every 10 s is sometimes early; the third early ping ends its connection.
MIN_PING_INTERVAL_MS = 5_000
HANDSHAKE_MS = 10_000  # for a connection that does not start with HTTP/2, or with TLS
MAX_STREAMS = 256
"""Concurrent calls of one connection. gRPC refuses those beyond, and some at the limit, instead of
leaving them in the client: it counts calls that have ended until their memory is free."""
MAX_WAITING_CALLS = 8192
"""Calls that the event loop has not begun to serve. gRPC ends some of those beyond with CANCELLED
and no word, all of them beyond twice as many, and by itself it does so from 1,000 on: probes of
others, too, while somebody sends many. Each takes about 10 KiB."""
LINGER_SHARE = 0.8
"""Of `server.linger_s`, the age at which a connection is sent away."""
AGE_SPREAD = 1.1  # gRPC varies the age by a tenth


def connection_age_s(own: ServerSettings) -> float:
    """The age at which a connection is sent away; 0 if it never is."""
    if own.linger_s <= 0:
        return 0.0
    return own.grpc_connection_s or LINGER_SHARE * own.linger_s


def server_options(own: ServerSettings, max_streams: int = MAX_STREAMS) -> list[tuple[str, int]]:
    """Arguments of `grpc.aio.server`.

    A connection is sent away (GOAWAY) before the server stops to serve, so that none from before a
    SIGTERM is left then. Its calls go on, and no new one is lost: `Server.stop` also sends GOAWAY,
    but cancels what a caller sends until it has come to know.
    """
    options = [
        ("grpc.max_receive_message_length", own.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # a second process on this port must fail, not share it
        ("grpc.max_concurrent_streams", max_streams),
        ("grpc.max_allowed_incoming_connections", max_grpc_connections()),
        ("grpc.server.max_pending_requests", MAX_WAITING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", 2 * MAX_WAITING_CALLS),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
    ]
    if (age_s := connection_age_s(own)) > 0:
        options.append(("grpc.max_connection_age_ms", max(1, int(age_s * 1e3))))
    return options
