"""The cost of a round does not depend on the queue's length. Counts calls, not time."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType

import pytest

from predictors.errors import Overloaded
from predictors.serving.accounts import Caller
from predictors.serving.host import EngineHost
from tests.fakes import ScriptedClock, ScriptedEngine, Task
from tests.serving.conftest import MakeHost, submit

LENGTHS = (4, 64, 1024)


def calls_of(work: Callable[[], object]) -> int:
    """Number of Python and C functions that `work` calls. The garbage collector is off: it calls
    finalizers and hooks (hypothesis has one) at any time."""
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    gc.disable()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return calls


def host_with(
    make_host: MakeHost, waiting: int, steps: int
) -> tuple[EngineHost[Task, str], ScriptedEngine]:
    clock = ScriptedClock()
    engine = ScriptedEngine(slots=4, gated=False)
    host = make_host(engine, clock=clock, start=False, capacity=2000)
    host.loop.load_and_warm()
    for i in range(4 + waiting):
        submit(host, Task(f"t{i}", steps), deadline=clock.now + 600 - i % 7)
    host.loop.run_once()
    return host, engine


def assert_full(host: EngineHost[Task, str]) -> None:
    with pytest.raises(Overloaded):
        host.check_accepting(1)


@pytest.mark.parametrize("steps", [10**6, 1], ids=["no job leaves", "every job leaves"])
def test_a_round_makes_the_same_calls_however_many_jobs_wait(
    make_host: MakeHost, steps: int
) -> None:
    costs = []
    for waiting in LENGTHS:
        host, engine = host_with(make_host, waiting + (4 if steps == 1 else 0), steps)
        engine.calls.clear()
        costs.append(calls_of(host.loop.run_once))
        assert len(engine.steps[0]) == 4
    assert costs[0] == costs[1] == costs[2]


def test_leaving_the_queue_costs_the_same_from_anywhere(make_host: MakeHost) -> None:
    costs = []
    for waiting in LENGTHS:
        host, _ = host_with(make_host, 0, 10**6)
        jobs = [submit(host, Task(f"w{i}"))[0] for i in range(waiting)]
        costs += [calls_of(jobs[waiting // 2].cancel), calls_of(jobs[0].cancel)]
    assert len(set(costs)) == 1


def test_a_refusal_costs_the_same_however_many_jobs_wait(make_host: MakeHost) -> None:
    costs = []
    for capacity in LENGTHS:
        engine = ScriptedEngine(slots=1)
        host = make_host(engine, start=False, capacity=capacity)
        host.loop.load_and_warm()
        for i in range(capacity + 1):
            submit(host, Task(f"w{i}"))
        costs.append(calls_of(partial(assert_full, host)))
    assert len(set(costs)) == 1


@pytest.mark.parametrize("steps", [10**6, 1], ids=["no job leaves", "every job leaves"])
def test_a_round_makes_the_same_calls_however_many_callers_wait(
    make_host: MakeHost, steps: int
) -> None:
    costs = []
    for callers in LENGTHS:
        host, engine = host_with(make_host, 0, steps)
        for i in range(callers + 16):
            submit(host, Task(f"w{i}", steps), caller=Caller(f"c{i}"))
        host.loop.run_once()
        engine.calls.clear()
        costs.append(calls_of(host.loop.run_once))
        assert len(engine.steps[0]) == 4
    assert costs[0] == costs[1] == costs[2]


def test_coming_and_being_refused_costs_the_same_however_many_callers_wait(
    make_host: MakeHost,
) -> None:
    costs = []
    for callers in LENGTHS:
        engine = ScriptedEngine(slots=1)
        host = make_host(engine, start=False, capacity=callers)
        host.loop.load_and_warm()
        for i in range(callers):
            submit(host, Task(f"w{i}"), caller=Caller(f"c{i}"))
        come = partial(submit, host, Task("comes"), caller=Caller("newcomer"))
        costs += [calls_of(come), calls_of(partial(assert_full, host))]
    assert costs[0] == costs[2] == costs[4]
    assert costs[1] == costs[3] == costs[5]
