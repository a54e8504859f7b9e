"""Who reads its response slowly or not at all, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from predictors.protocol.http.connection_limits import MIN_BYTES_PER_S, SlowReaderTimeout

TIMEOUT_S = 30.0
LEAST = int(MIN_BYTES_PER_S * TIMEOUT_S)
FULL = 70_000


class Clock:
    """An event loop's time and timers."""

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


class Watched:
    """A watch that has begun, with so many bytes to send."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self.size = FULL
        self.clock = Clock()
        self.is_cut = False
        loop = cast(asyncio.AbstractEventLoop, self.clock)
        self.watch = SlowReaderTimeout(loop, self, timeout_s, self.cut)  # type: ignore[arg-type]
        self.watch.start()

    def get_write_buffer_size(self) -> int:
        return self.size

    def cut(self) -> None:
        self.is_cut = True


def test_who_does_not_read_at_all_is_cut_off_when_its_time_is_over() -> None:
    watched = Watched()
    watched.clock.advance(TIMEOUT_S - 1)
    assert not watched.is_cut
    watched.clock.advance(1)
    assert watched.is_cut
    assert watched.clock.timers == []


def test_who_reads_a_byte_per_second_is_cut_off_too() -> None:
    watched = Watched()
    for _ in range(int(TIMEOUT_S)):
        watched.size -= 1
        watched.clock.advance(1)
    assert watched.is_cut


@pytest.mark.parametrize("step_s", [1.0, 7.0, 20.0])
def test_who_reads_fast_enough_may_read_for_ever(step_s: float) -> None:
    watched = Watched()
    for _ in range(100):
        watched.size = FULL  # the application has written on
        watched.watch.start()
        watched.size -= min(FULL, int(2 * MIN_BYTES_PER_S * step_s))
        watched.clock.advance(step_s)
        watched.watch.stop()
        assert not watched.is_cut


def test_who_stops_after_a_good_begin_has_a_whole_time_more() -> None:
    watched = Watched()
    watched.size -= LEAST
    watched.clock.advance(TIMEOUT_S / 2)
    assert not watched.is_cut
    watched.clock.advance(TIMEOUT_S - 1)
    assert not watched.is_cut or watched.clock.now >= 100 + TIMEOUT_S
    watched.clock.advance(TIMEOUT_S)
    assert watched.is_cut


def test_the_last_bytes_are_enough_however_few() -> None:
    watched = Watched()
    watched.size = 10
    watched.watch.stop()
    watched.watch.start()
    watched.clock.advance(TIMEOUT_S / 2)
    watched.size = 0
    watched.clock.advance(10 * TIMEOUT_S)
    assert not watched.is_cut


def test_nobody_is_watched_who_has_nothing_to_read_or_where_time_is_no_matter() -> None:
    ended, endless = Watched(), Watched(timeout_s=0.0)
    ended.watch.stop()
    for watched in (ended, endless):
        watched.clock.advance(1e6)
        assert not watched.is_cut
