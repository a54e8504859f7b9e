"""A lean HTTP/1.1 client in a process of its own: one fixed request, over and over.

`python -m benchmarks.serving.wire_client PORT CONNECTIONS REQUESTS` prints one JSON line: the rate
and the latency quantiles in milliseconds. Connections are kept open. Of a response it parses only
the length and the status.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time

BODY = json.dumps(
    {
        "id": "1",
        "inputs": [
            {
                "name": "prompt",
                "datatype": "BYTES",
                "shape": [1],
                "data": ["a large red circle to the left of a small blue square"],
            }
        ],
    }
).encode()


class Connection(asyncio.Protocol):
    """Sends the next request when the last one is answered, while any are left."""

    def __init__(self, request: bytes, left: list[int], took: list[float]) -> None:
        self._request = request
        self._left = left
        self._took = took
        self._buffer = b""
        self._sent_at = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def data_received(self, received: bytes) -> None:
        self._buffer += received
        if not is_complete(self._buffer):
            return
        self._took.append(time.perf_counter() - self._sent_at)
        if not self._buffer.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(self._buffer[:300].decode(errors="replace")))
            self._transport.close()
            return
        self._buffer = b""
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or RuntimeError("the server closed the connection"))

    def _send(self) -> None:
        if self._left[0] == 0:
            self.done.set_result(None)
            self._transport.close()
            return
        self._left[0] -= 1
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)


def is_complete(answer: bytes) -> bool:
    """True once the whole response is there, by its length or its last chunk."""
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        return False
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line[15:])
    return body.endswith(b"0\r\n\r\n")


async def measure(port: int, connections: int, requests: int) -> dict[str, float]:
    """Send `requests` over `connections`; returns rate and latencies."""
    head = (
        "POST /v2/models/echo/infer HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    )
    left, took = [requests], list[float]()
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    made = [
        await loop.create_connection(
            lambda: Connection(head.encode() + BODY, left, took), "127.0.0.1", port
        )
        for _ in range(connections)
    ]
    await asyncio.gather(*(connection.done for _, connection in made))
    seconds = time.perf_counter() - started
    cuts = statistics.quantiles(took, n=100)
    return {
        "requests": requests,
        "rate": requests / seconds,
        "p50_ms": 1000 * statistics.median(took),
        "p99_ms": 1000 * cuts[98],
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(*map(int, sys.argv[1:4])))))
