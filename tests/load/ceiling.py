"""The generator's own ceiling: the highest rate of the mixed traffic at which it is on time,
against a server that does nothing.

`python -m tests.load.ceiling` serves an empty answer to whatever comes, over HTTP and gRPC, and
prints its two ports.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any, cast

import grpc.aio

from benchmarks.common import paths
from predictors.protocol.kserve_sdk import pb
from tests.load.generator import Plan, loop_runner
from tests.load.records import summary
from tests.load.runs import LATE_MS, generating
from tests.load.target import Cores, pinned

RATES = (200, 400, 800, 1200, 1600, 2400)
SECONDS = 4.0
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\ndata: [DONE]\n\n"


class Empty(asyncio.Protocol):
    """Answers each whole request; reads heads and lengths only."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._buffer = bytearray()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        length = int(bytes(self._buffer[:end]).rpartition(b"content-length: ")[2])
        if len(self._buffer) >= end + 4 + length:
            self._buffer.clear()
            self._transport.write(ANSWER)


class EmptyCalls(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        async def answer(request: bytes, context: Any) -> bytes:
            context.set_trailing_metadata((("x-request-id", "1"),))
            return REPLY

        return grpc.unary_unary_rpc_method_handler(answer)


REPLY = pb.ModelInferResponse(model_name="empty").SerializeToString()


async def serve() -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((EmptyCalls(),))
    grpc_port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    http = await asyncio.get_running_loop().create_server(Empty, "127.0.0.1", 0)
    print(http.sockets[0].getsockname()[1], grpc_port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(0)
    http.close()


def ceiling(cores: Cores, mix: str = "mixed") -> dict[str, Any]:
    with pinned(cores.server):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.load.ceiling"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=paths.ROOT,
        )  # fmt: skip
    assert process.stdout is not None
    port, grpc_port = map(int, process.stdout.readline().split())
    runs = []
    for rate in RATES:
        plan = Plan(port, grpc_port, mix, rate, SECONDS, rate, compared=0.0)
        with generating(plan, cores, "ceiling") as running:
            pass
        found = summary(running.records, SECONDS / 4, SECONDS)
        is_valid = found.lag_p99_ms is not None and found.lag_p99_ms <= LATE_MS
        runs.append({"rate": rate, "lag_p99_ms": found.lag_p99_ms, "p99_ms": found.p99_ms,
                     "cpu": round(running.cpu_s / SECONDS, 2), "is_valid": is_valid})  # fmt: skip
        if not is_valid:
            break
    process.communicate("")
    best = max((each["rate"] for each in runs if each["is_valid"]), default=0)
    return {"mix": mix, "best": best, "late_ms": LATE_MS, "runs": runs}


if __name__ == "__main__":
    with loop_runner() as runner:
        runner.run(serve())
