"""The timeout of clients that read their response slowly or not at all, on a fake clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from predictors.protocol.http.connection_limits import MIN_BYTES_PER_S, SlowReaderTimeout

TIMEOUT_S = 30.0
MIN_BYTES = int(MIN_BYTES_PER_S * TIMEOUT_S)
FULL = 70_000


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[[], None]) -> Clock:
        self.timers.append((self.now + seconds, call))
        return self

    def cancel(self) -> None:
        self.timers.clear()

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self.timers and self.timers[0][0] <= end:
            self.now, call = self.timers.pop(0)
            call()
        self.now = end


class SlowClient:
    """A client with `size` unsent bytes, and the timeout that watches it."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self.size = FULL
        self.clock = Clock()
        self.is_cut_off = False
        loop = cast(asyncio.AbstractEventLoop, self.clock)
        self.timeout = SlowReaderTimeout(loop, self, timeout_s, self.cut_off)  # type: ignore[arg-type]
        self.timeout.start()

    def get_write_buffer_size(self) -> int:
        return self.size

    def cut_off(self) -> None:
        self.is_cut_off = True


def test_a_client_that_does_not_read_is_cut_off_after_the_timeout() -> None:
    client = SlowClient()
    client.clock.advance(TIMEOUT_S - 1)
    assert not client.is_cut_off
    client.clock.advance(1)
    assert client.is_cut_off
    assert client.clock.timers == []


def test_a_client_that_reads_a_byte_per_second_is_cut_off() -> None:
    client = SlowClient()
    for _ in range(int(TIMEOUT_S)):
        client.size -= 1
        client.clock.advance(1)
    assert client.is_cut_off


@pytest.mark.parametrize("step_s", [1.0, 7.0, 20.0])
def test_a_client_that_reads_fast_enough_is_never_cut_off(step_s: float) -> None:
    client = SlowClient()
    for _ in range(100):
        client.size = FULL  # the application has written more
        client.timeout.start()
        client.size -= min(FULL, int(2 * MIN_BYTES_PER_S * step_s))
        client.clock.advance(step_s)
        client.timeout.stop()
        assert not client.is_cut_off


def test_a_client_that_stops_reading_gets_one_whole_timeout_more() -> None:
    client = SlowClient()
    client.size -= MIN_BYTES
    client.clock.advance(TIMEOUT_S / 2)
    assert not client.is_cut_off
    client.clock.advance(TIMEOUT_S - 1)
    assert not client.is_cut_off or client.clock.now >= 100 + TIMEOUT_S
    client.clock.advance(TIMEOUT_S)
    assert client.is_cut_off


def test_reading_the_last_few_bytes_is_enough() -> None:
    client = SlowClient()
    client.size = 10
    client.timeout.stop()
    client.timeout.start()
    client.clock.advance(TIMEOUT_S / 2)
    client.size = 0
    client.clock.advance(10 * TIMEOUT_S)
    assert not client.is_cut_off


def test_nothing_happens_after_stop_or_with_a_timeout_of_zero() -> None:
    ended, endless = SlowClient(), SlowClient(timeout_s=0.0)
    ended.timeout.stop()
    for client in (ended, endless):
        client.clock.advance(1e6)
        assert not client.is_cut_off
