"""gRPC calls with messages that are serialised already, on several connections in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
import grpc.aio

CHANNELS = 8
"""A connection carries 256 calls at once."""
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),
]


class GrpcChannels:
    """Connects with the first call. Event loop."""

    def __init__(self, port: int) -> None:
        self._target = f"127.0.0.1:{port}"
        self._channels: list[grpc.aio.Channel] = []
        self._next = 0

    async def call(
        self,
        method: str,
        message: bytes,
        deadline_s: float,
        patience_s: float,
        metadata: Sequence[tuple[str, str]] = (),
        leaves_after_s: float | None = None,
    ) -> tuple[str, bytes]:
        """The status and the answer. A failure that the client has found itself, because the
        connection broke or nothing came until `patience_s` after the deadline, is `lost: ...`.

        The server is told the deadline in metadata, so that its answer can be told from ours.
        """
        if not self._channels:
            self._channels = [
                grpc.aio.insecure_channel(self._target, options=[*OPTIONS, ("load.number", i)])
                for i in range(CHANNELS)
            ]
        self._next += 1
        ask = self._channels[self._next % CHANNELS].unary_unary(method)
        told = ("x-request-timeout-ms", str(int(deadline_s * 1000)))
        call = ask(message, timeout=deadline_s + patience_s, metadata=(told, *metadata))
        if leaves_after_s is not None:
            asyncio.get_running_loop().call_later(leaves_after_s, call.cancel)
        try:
            return "OK", await call
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            trailing = error.trailing_metadata()
            if trailing is None or "x-request-id" not in dict(trailing):
                return f"lost: {code} {error.details()}"[:120], b""
            return code, b""
        except asyncio.CancelledError:
            if leaves_after_s is None or not call.cancelled():
                raise
            return "CANCELLED", b""

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
