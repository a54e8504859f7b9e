"""Parts of a response that are written past `send`, by a request's cycle."""

from __future__ import annotations

from typing import Any

import pytest

from predictors.protocol.http.cycle import WRITER
from tests.protocol.http.doubles import ConnectionUnderTest, run_loop

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
START = {"type": "http.response.start", "status": 200, "headers": []}


def part(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


class Streaming:
    """An application that sends a, b and c, with `writes` the last two past `send`. `seen` says at
    each point if the writer is open."""

    def __init__(self, *, writes: bool = True, length: int = 0) -> None:
        self._writes, self._length = writes, length
        self.seen: list[bool] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        writer = scope["extensions"][WRITER]
        self.seen.append(writer.is_open)
        own = [(b"content-length", b"%d" % self._length)] if self._length else []
        await send(START | {"headers": own})
        self.seen.append(writer.is_open)
        await send(part(b""))
        for body in (b"a", b"b", b"c"):
            self.seen.append(writer.is_open)
            if self._writes and writer.is_open:
                writer.write(body)
            else:
                await send(part(body))
        await send(part(b"", more=False))
        self.seen.append(writer.is_open)


async def test_written_parts_are_the_same_bytes_as_sent_ones() -> None:
    wrote: list[bytes] = []
    for writes in (False, True):
        app = Streaming(writes=writes)
        connection = ConnectionUnderTest(app=app)
        await connection.feed([GET])
        wrote.append(bytes(connection.transport.written))
        assert app.seen == [False, False, True, True, True, False]
        connection.close()
    assert wrote[0] == wrote[1]
    assert wrote[0].endswith(b"\r\n\r\n1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    ("request_head", "length"), [(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n", 0), (GET, 3)]
)
async def test_a_body_that_is_not_sent_in_chunks_is_never_written_past_send(
    request_head: bytes, length: int
) -> None:
    app = Streaming(length=length)
    connection = ConnectionUnderTest(app=app)
    await connection.feed([request_head])
    assert not any(app.seen)
    assert connection.transport.written.endswith(b"\r\n\r\nabc")
    connection.close()


async def test_a_client_that_does_not_read_or_left_closes_the_writer() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(part(b"a"))
        seen.append(scope["extensions"][WRITER])
        await receive()
        await receive()

    connection = ConnectionUnderTest(app=app)
    connection.transport.reads = False
    connection.transport.feed(GET)
    await run_loop()
    (writer,) = seen
    assert writer.is_open
    writer.write(b"x" * 100_000)
    assert not writer.is_open
    connection.transport.read_buffered(200_000)
    assert writer.is_open
    connection.close()
    assert not writer.is_open
    await connection.wait_answered()
