"""Writes of connections reach their sockets in order and whole, through the batch of a loop's turn
or through the transport."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.protocol.http import socket_writes
from predictors.protocol.http.socket_writes import (
    MOST_BYTES,
    MOST_WAITING,
    SocketWriter,
    WriteBatch,
    batch_of,
)

LOOPS = {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}
PIECES = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from((0, 1, 200, 5_000, MOST_BYTES, MOST_BYTES + 1, 90_000)),
        st.booleans(),
    ),
    max_size=40,
)


@pytest.fixture(params=LOOPS)
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    return LOOPS[request.param]


def run(
    main: Callable[[], Awaitable[None]], factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(main(), 120))  # type: ignore[arg-type]


class EndNoted(asyncio.Protocol):
    def __init__(self) -> None:
        self.ended = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()


async def connected(batch: WriteBatch | None) -> tuple[SocketWriter, socket.socket]:
    """A writer, and the other end of its connection, with small buffers."""
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        each.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(EndNoted, sock=ours)
    return SocketWriter(transport, batch), theirs


async def read_all(end: socket.socket) -> bytes:
    """Until the other side has ended."""
    loop, found = asyncio.get_running_loop(), bytearray()
    with end:
        while part := await loop.sock_recv(end, 3000):
            found += part
    return bytes(found)


class CountedCalls:
    """`send_each`, whose calls are counted."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, writes: tuple[tuple[int, bytes], ...]) -> list[int]:
        self.sizes.append(len(writes))
        return socket_writes.send_each(writes)


@pytest.mark.skipif(socket_writes.send_each is None, reason="installed without a compiler")
def test_the_writes_of_a_turn_are_one_call(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        calls = CountedCalls()
        batch = WriteBatch(asyncio.get_running_loop(), calls)
        pairs = [await connected(batch) for _ in range(20)]
        for number, (writer, _) in enumerate(pairs):
            writer.write(b"event %d\n" % number)
            writer.write(b"and more")
        assert calls.sizes == []
        assert all(writer.unsent for writer, _ in pairs)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert calls.sizes == [20]
        assert not any(writer.unsent for writer, _ in pairs)
        for number, (writer, end) in enumerate(pairs):
            writer.close()
            assert await read_all(end) == b"event %d\nand more" % number
        assert calls.sizes == [20]

    run(main, loop_factory)


@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize("is_batched", [True, False])
@settings(deadline=None, max_examples=40)
@given(pieces=PIECES)
def test_all_bytes_come_in_order_whatever_their_sizes_and_turns(
    kind: str, is_batched: bool, pieces: Sequence[tuple[int, int, bool]]
) -> None:
    async def main() -> None:
        batch = batch_of(asyncio.get_running_loop()) if is_batched else None
        pairs = [await connected(batch) for _ in range(2)]
        readers = [asyncio.ensure_future(read_all(end)) for _, end in pairs]
        expected = [bytearray(), bytearray()]
        for i, (which, size, turns) in enumerate(pieces):
            raw = bytes([i % 251]) * size
            pairs[which][0].write(raw if i % 3 else memoryview(raw))
            expected[which] += raw
            if turns:
                await asyncio.sleep(0)
        for writer, _ in pairs:
            writer.close()
        for reader, wanted in zip(readers, expected, strict=True):
            assert await reader == bytes(wanted)

    run(main, LOOPS[kind])


@pytest.mark.parametrize("end", ["close", "write_eof"])
def test_what_waits_is_sent_before_the_end(
    end: str, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def main() -> None:
        writer, theirs = await connected(batch_of(asyncio.get_running_loop()))
        writer.write(b"last words")
        getattr(writer, end)()
        assert await read_all(theirs) == b"last words"
        writer.close()

    run(main, loop_factory)


def test_a_write_after_the_end_is_no_error_of_other_connections(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        batch = batch_of(asyncio.get_running_loop())
        ended, theirs = await connected(batch)
        other, end = await connected(batch)
        ended.write_eof()
        with suppress(RuntimeError):  # of the transport
            ended.write(b"too late")
        assert not ended.unsent
        other.write(b"in time")
        other.close()
        assert await read_all(end) == b"in time"
        assert await read_all(theirs) == b""
        ended.close()

    run(main, loop_factory)


def test_no_more_than_a_bound_waits_for_the_end_of_a_turn(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        calls = CountedCalls()
        writer, theirs = await connected(WriteBatch(asyncio.get_running_loop(), calls))
        reader = asyncio.ensure_future(read_all(theirs))
        count = MOST_WAITING // MOST_BYTES + 2
        for _ in range(count):
            writer.write(b"x" * MOST_BYTES)
            assert writer._num_waiting <= MOST_WAITING
        writer.close()
        assert len(await reader) == count * MOST_BYTES

    run(main, loop_factory)


def test_bytes_of_a_connection_that_was_aborted_reach_no_other(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """The system gives its descriptor to the next socket."""

    async def main() -> None:
        batch = batch_of(asyncio.get_running_loop())
        writer, theirs = await connected(batch)
        writer.write(b"not yours")
        writer._transport.abort()
        others = [await connected(batch) for _ in range(4)]
        await asyncio.sleep(0)
        for other, end in others:
            other.close()
            assert await read_all(end) == b""
        theirs.close()

    run(main, loop_factory)


def test_a_connection_that_the_other_side_reset_ends_and_others_do_not(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        batch = batch_of(asyncio.get_running_loop())
        gone, theirs = await connected(batch)
        stays, end = await connected(batch)
        theirs.close()
        protocol = gone._transport.get_protocol()
        assert isinstance(protocol, EndNoted)
        while not protocol.ended.is_set():
            gone.write(b"hello")
            await asyncio.sleep(0)
        stays.write(b"still here")
        stays.close()
        assert await read_all(end) == b"still here"

    run(main, loop_factory)


@pytest.mark.skipif(socket_writes.send_each is None, reason="installed without a compiler")
def test_send_each_tells_what_each_socket_took() -> None:
    ours, theirs = socket.socketpair()
    full, other = socket.socketpair()
    full.setblocking(False)
    while True:
        try:
            full.send(b"x" * 65536)
        except BlockingIOError:
            break
    closed = os.dup(ours.fileno())
    os.close(closed)
    with ours, theirs, full, other:
        sent = socket_writes.send_each(
            (
                (ours.fileno(), b"abc"),
                (full.fileno(), b"abc"),
                (closed, b"abc"),
                (ours.fileno(), b""),
            )
        )
        assert sent == [3, -errno.EAGAIN, -errno.EBADF, 0]
        assert theirs.recv(10) == b"abc"


@pytest.mark.skipif(socket_writes.send_each is None, reason="installed without a compiler")
@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ((1,),),
        ((1, "text"),),
        (("a", b""),),
        ([1, b""],),
        ((2**70, b""),),
        ((2**32, b"x"),),
        ((-1, b"x"),),
    ],
)
def test_send_each_refuses_what_it_cannot_send(wrong: object) -> None:
    with pytest.raises((TypeError, OverflowError, ValueError)):
        socket_writes.send_each(wrong)  # type: ignore[arg-type]


def test_without_the_compiled_module_transports_write_for_themselves(
    monkeypatch: pytest.MonkeyPatch, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    monkeypatch.setattr(socket_writes, "send_each", None)

    async def main() -> None:
        assert batch_of(asyncio.get_running_loop()) is None
        writer, theirs = await connected(None)
        writer.write(b"by itself")
        writer.close()
        assert await read_all(theirs) == b"by itself"

    run(main, loop_factory)
