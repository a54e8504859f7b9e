"""Thread pools: small work does not wait behind large work, and a hang is noticed."""

from __future__ import annotations

import threading

import pytest

from predictors.serving.thread_pools import ThreadPools, threads_for
from tests.fakes import PATIENCE_S, ScriptedClock


@pytest.fixture
def clock() -> ScriptedClock:
    return ScriptedClock()


def test_small_work_is_done_while_all_threads_for_large_work_are_busy(
    clock: ScriptedClock,
) -> None:
    pools, opened = ThreadPools("x", 2, 100.0, clock), threading.Event()
    large = [pools.submit(opened.wait, PATIENCE_S, is_large=True) for _ in range(5)]
    assert [pools.submit(str, i).result(PATIENCE_S) for i in range(5)] == list("01234")
    assert not any(future.done() for future in large)
    opened.set()
    assert all(future.result(PATIENCE_S) for future in large)
    pools.close()


@pytest.mark.parametrize("is_large", [False, True])
def test_a_hanging_thread_is_noticed_until_it_returns(
    clock: ScriptedClock, *, is_large: bool
) -> None:
    pools, started, opened = ThreadPools("x", 2, 100.0, clock), threading.Event(), threading.Event()

    def hang() -> None:
        started.set()
        opened.wait(PATIENCE_S)

    pools.submit(str, 1).result(PATIENCE_S)
    hanging = pools.submit(hang, is_large=is_large)
    assert started.wait(PATIENCE_S)
    clock.advance(100.0)
    assert pools.is_alive
    clock.advance(0.1)
    assert not pools.is_alive
    opened.set()
    hanging.result(PATIENCE_S)
    assert pools.is_alive
    pools.close()


def test_an_error_reaches_the_caller_and_the_thread_goes_on(clock: ScriptedClock) -> None:
    pools = ThreadPools("x", 1, 100.0, clock)
    with pytest.raises(ZeroDivisionError):
        pools.submit(lambda: 1 // 0).result(PATIENCE_S)
    assert pools.submit(str, 1).result(PATIENCE_S) == "1"
    assert pools.is_alive
    pools.close()


@pytest.mark.parametrize(("cores", "threads"), [(1, 2), (2, 2), (8, 4), (16, 8), (192, 8)])
def test_the_number_of_prepare_threads_follows_the_cores(cores: int, threads: int) -> None:
    assert threads_for(cores) == threads
