"""Threads for preparing: small work does not wait behind large work, and a hang is noticed."""

from __future__ import annotations

import threading

import pytest

from predictors.serving.lanes import Lanes
from tests.fakes import PATIENCE_S, ScriptedClock


@pytest.fixture
def clock() -> ScriptedClock:
    return ScriptedClock()


def test_small_work_is_done_while_all_threads_for_large_work_are_busy(
    clock: ScriptedClock,
) -> None:
    lanes, opened = Lanes("x", 2, 100.0, clock), threading.Event()
    large = [lanes.submit(opened.wait, PATIENCE_S, is_large=True) for _ in range(5)]
    assert [lanes.submit(str, i).result(PATIENCE_S) for i in range(5)] == list("01234")
    assert not any(future.done() for future in large)
    opened.set()
    assert all(future.result(PATIENCE_S) for future in large)
    lanes.close()


@pytest.mark.parametrize("is_large", [False, True])
def test_a_thread_that_hangs_is_noticed_and_one_that_is_done_is_not(
    clock: ScriptedClock, *, is_large: bool
) -> None:
    lanes, begun, opened = Lanes("x", 2, 100.0, clock), threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        opened.wait(PATIENCE_S)

    lanes.submit(str, 1).result(PATIENCE_S)
    hanging = lanes.submit(hang, is_large=is_large)
    assert begun.wait(PATIENCE_S)
    clock.advance(100.0)
    assert lanes.is_alive
    clock.advance(0.1)
    assert not lanes.is_alive
    opened.set()
    hanging.result(PATIENCE_S)
    assert lanes.is_alive
    lanes.close()


def test_a_failure_is_its_callers_and_the_thread_goes_on(clock: ScriptedClock) -> None:
    lanes = Lanes("x", 1, 100.0, clock)
    with pytest.raises(ZeroDivisionError):
        lanes.submit(lambda: 1 // 0).result(PATIENCE_S)
    assert lanes.submit(str, 1).result(PATIENCE_S) == "1"
    assert lanes.is_alive
    lanes.close()
