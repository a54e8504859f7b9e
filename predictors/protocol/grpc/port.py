"""The port of a gRPC server, and its end: by `stop`, or by a fault that nothing else would notice.

Imports no service: the activator listens by it too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from predictors.protocol.certificates import Certificates
from predictors.protocol.grpc.connection_options import AGE_SPREAD, connection_age_s
from predictors.protocol.grpc.connections import (
    Peer,
    connected_peers,
    end_connections,
    refuse_connections,
)
from predictors.protocol.grpc.open_calls import OpenCalls
from predictors.protocol.http.listening import grpc_fault
from predictors.settings import ServerSettings

LOOK_S = 0.25
CLOSE_S = 1.0  # for gRPC to see that its connections have ended

log = logging.getLogger(__name__)


class GrpcListener:
    """A server that listens on `port`. Event loop only."""

    def __init__(
        self,
        server: grpc.aio.Server,
        port: int,
        on_lost: Callable[[], object],
        calls: OpenCalls,
    ) -> None:
        """`on_lost` is called if the server ends without `stop`. `calls` are its own."""
        self.port = calls.answers.port = port
        self._server = server
        self._on_lost = on_lost
        self._calls = calls
        self._is_stopping = False
        self._watching = asyncio.create_task(self._watch())

    async def stop(self, grace_s: float) -> None:
        """Close the port and the connections. Calls that are open have so many seconds to end."""
        self._is_stopping = True
        await self._calls.wait_answered(grace_s)
        # `Server.stop` cancels the calls that come until the callers know that it stops, and nobody
        # repeats a cancelled call. Those of a connection that has ended are UNAVAILABLE.
        await asyncio.to_thread(refuse_connections, self.port)
        await asyncio.to_thread(end_connections, self.port)
        await self._calls.wait_none(CLOSE_S)
        await self._server.stop(None)
        await self._watching

    async def wait_gone(self, peers: set[Peer], longest_s: float) -> None:
        """Wait until the connections of these peers have ended."""
        loop = asyncio.get_running_loop()
        until = loop.time() + longest_s
        while peers and loop.time() < until:
            await asyncio.sleep(LOOK_S)
            peers = peers & await asyncio.to_thread(connected_peers, self.port)

    async def _watch(self) -> None:
        waiting = self._server.wait_for_termination()
        ended: Sequence[Any] = await asyncio.gather(waiting, return_exceptions=True)
        if not self._is_stopping:
            reason = ended[0] if isinstance(ended[0], Exception) else None
            log.critical("the gRPC server ended by itself, the process ends", exc_info=reason)
            self._on_lost()


async def linger(own: ServerSettings, listener: GrpcListener | None) -> None:
    """Wait for `linger_s`, and on while gRPC connections that are open now have not yet reached the
    age at which they are sent away."""
    if listener is None:
        await asyncio.sleep(own.linger_s)
        return
    peers = await asyncio.to_thread(connected_peers, listener.port)
    await asyncio.sleep(own.linger_s)
    longest_s = AGE_SPREAD * connection_age_s(own) - own.linger_s
    if longest_s > 0:
        await listener.wait_gone(peers, longest_s + CLOSE_S)


async def start_listening(
    server: grpc.aio.Server,
    own: ServerSettings,
    on_lost: Callable[[], object],
    calls: OpenCalls,
    certificates: Certificates | None = None,
) -> GrpcListener:
    """Open the port and start. `on_lost` is that of `GrpcListener`.
    Raises `InvalidSetting` if it can't listen."""
    address = f"{f'[{own.host}]' if ':' in own.host else own.host}:{own.grpc_port}"
    try:
        if certificates is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, certificates.grpc_credentials())
    except RuntimeError as error:
        raise grpc_fault(own.host, own.grpc_port) from error
    await server.start()
    return GrpcListener(server, port, on_lost, calls)
