"""Many gRPC calls at once, and others meanwhile: none is ended without a word."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from predictors.protocol.grpc.connection_options import MAX_STREAMS, MAX_WAITING_CALLS
from predictors.protocol.kserve_sdk import pb
from tests.http.echo import PATIENCE_S, Running, echo, serving
from tests.http.http2 import (
    DATA,
    END_STREAM,
    HEADERS,
    PING,
    RST_STREAM,
    Connection,
    Frame,
    connect,
)
from tests.http.test_grpc_hostile import EMPTY, LIVE

CONNECTIONS, CALLS = 16, MAX_STREAMS - 6  # gRPC refuses some at its limit of streams


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(echo()) as found:
        yield found


@contextmanager
def busy_loop(running: Running) -> Iterator[None]:
    """The server's event loop does nothing in the block."""
    loop, is_busy, over = running.server._loop, threading.Event(), threading.Event()
    assert loop is not None

    def block() -> None:
        is_busy.set()
        over.wait(PATIENCE_S)

    loop.call_soon_threadsafe(block)
    try:
        assert is_busy.wait(PATIENCE_S)
        yield
    finally:
        over.set()


class Calls:
    """The calls of one connection: which are answered, and which have ended."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.answered: set[int] = set()
        self.ended: set[int] = set()

    def send(self) -> None:
        """Send all, and wait until they have arrived."""
        self._connection.allow(2**20)
        for number in range(1, 2 * CALLS, 2):
            self._connection.open(LIVE, number)
            self._connection.part(EMPTY, number, END_STREAM)
        self._connection.send(PING, b"12345678")
        while self._receive().kind != PING:
            pass

    def wait(self) -> None:
        """Wait until all have ended."""
        while len(self.ended) < CALLS:
            self._receive()

    def _receive(self) -> Frame:
        frame = self._connection.receive()
        if frame.kind == DATA and frame.payload:
            assert pb.ServerLiveResponse.FromString(frame.payload[5:]).live
            self.answered.add(frame.stream)
        if frame.kind == RST_STREAM or (frame.kind == HEADERS and frame.flags & END_STREAM):
            self.ended.add(frame.stream)
        return frame


def test_calls_that_wait_for_a_busy_server_are_all_answered(running: Running) -> None:
    """By gRPC's own limit about a third of these got CANCELLED, which no client repeats."""
    assert CONNECTIONS * CALLS < MAX_WAITING_CALLS
    with ExitStack() as stack:
        sent = [
            Calls(stack.enter_context(connect(running.server.grpc_port)))
            for _ in range(CONNECTIONS)
        ]
        with busy_loop(running):
            for calls in sent:
                calls.send()
        for calls in sent:
            calls.wait()
    assert [len(calls.answered) for calls in sent] == [CALLS] * CONNECTIONS
