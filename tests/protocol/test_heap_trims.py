"""When the C heap is trimmed: soon after a large request, later after others, never when idle."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from predictors.protocol import heap_trims
from predictors.protocol.heap_trims import (
    LARGE_BYTES,
    TRIM_AFTER_LARGE_S,
    TRIM_AFTER_OTHERS_S,
    HeapTrims,
)

LARGE, SMALL = LARGE_BYTES + 1, 0


class FakeTimer:
    def __init__(self, due: float, work: Callable[[], None]) -> None:
        self._due = due
        self.work: Callable[[], None] | None = work

    def when(self) -> float:
        return self._due

    def cancel(self) -> None:
        self.work = None


class FakeLoop:
    """A clock that is moved by hand, and the timers on it."""

    def __init__(self) -> None:
        self.now = 100.0
        self._timers: list[tuple[float, int, FakeTimer]] = []
        self.num_timers = 0

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, work: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(self.now + seconds, work)
        self.num_timers += 1
        heapq.heappush(self._timers, (timer.when(), self.num_timers, timer))
        return timer

    def let_pass(self, seconds: float) -> None:
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            self.now, _, timer = heapq.heappop(self._timers)
            if timer.work is not None:
                timer.work()
        self.now = end


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> FakeLoop:
    made = FakeLoop()
    # not asyncio's own: other tests' servers may run in this process
    monkeypatch.setattr(heap_trims, "asyncio", SimpleNamespace(get_running_loop=lambda: made))
    return made


@pytest.fixture
def trimmed() -> list[float]:
    """When it was."""
    return []


@pytest.fixture
def trims(loop: FakeLoop, trimmed: list[float]) -> HeapTrims:
    return HeapTrims(lambda: trimmed.append(loop.now - 100.0))


@pytest.mark.parametrize(
    ("num_bytes", "seconds"), [(SMALL, TRIM_AFTER_OTHERS_S), (LARGE, TRIM_AFTER_LARGE_S)]
)
def test_many_requests_share_a_trim_and_an_idle_process_has_no_more(
    loop: FakeLoop, trims: HeapTrims, trimmed: list[Any], num_bytes: int, seconds: float
) -> None:
    for _ in range(1000):
        trims.answered(num_bytes)
    assert loop.num_timers == 1
    loop.let_pass(1000.0)
    assert trimmed == [seconds]
    trims.answered(num_bytes)
    loop.let_pass(1000.0)
    assert trimmed == [seconds, 1000.0 + seconds]


def test_a_steady_stream_of_small_requests_does_not_put_the_trim_off(
    loop: FakeLoop, trims: HeapTrims, trimmed: list[Any]
) -> None:
    for _ in range(100):
        trims.answered(SMALL)
        loop.let_pass(1.0)
    assert len(trimmed) == pytest.approx(100 / TRIM_AFTER_OTHERS_S, abs=1)


def test_a_large_request_brings_the_trim_forward(
    loop: FakeLoop, trims: HeapTrims, trimmed: list[Any]
) -> None:
    trims.answered(SMALL)
    trims.answered(LARGE)
    loop.let_pass(1000.0)
    assert trimmed == [TRIM_AFTER_LARGE_S]
    trims.answered(SMALL)
    loop.let_pass(TRIM_AFTER_OTHERS_S - 0.5)
    trims.answered(LARGE)  # a trim is due before
    loop.let_pass(1000.0)
    assert trimmed == [TRIM_AFTER_LARGE_S, 1000.0 + TRIM_AFTER_OTHERS_S]


def test_nothing_is_trimmed_after_the_end(
    loop: FakeLoop, trims: HeapTrims, trimmed: list[Any]
) -> None:
    trims.close()
    trims.answered(LARGE)
    trims.close()
    loop.let_pass(1000.0)
    assert trimmed == []
