"""Functions of other threads run on the engine thread, between steps, busy or idle."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from predictors.errors import Draining, EngineFailed, NotReady
from predictors.serving.calls import EngineAccess
from predictors.serving.engine import StickyDeviceError
from predictors.serving.lifecycle import State
from tests.fakes import PATIENCE_S, ScriptedEngine, Task, answer
from tests.serving.conftest import MakeHost, busy, submit


class AttachedEngine(ScriptedEngine):
    host: EngineAccess | None = None

    def attach(self, host: EngineAccess) -> None:
        self.host = host


def test_an_engine_that_wants_it_is_given_its_host(make_host: MakeHost) -> None:
    engine = AttachedEngine()
    assert engine.host is None
    assert make_host(engine, start=False) is engine.host


def test_an_idle_engine_runs_a_call_on_its_own_thread(make_host: MakeHost) -> None:
    host = make_host(ScriptedEngine())
    assert host.call(threading.current_thread).name == f"{host.model}-engine"


def test_a_busy_engine_runs_calls_between_two_steps_in_their_order(make_host: MakeHost) -> None:
    engine = ScriptedEngine()
    host = make_host(engine)
    jobs = busy(host, engine, steps=3)
    waits, wake = threading.Event(), host.loop.calls._wake
    host.loop.calls._wake = lambda: (waits.set(), wake())  # type: ignore[assignment,return-value]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(host.call, lambda: len(engine.steps))
        assert waits.wait(PATIENCE_S)  # the last step that is allowed is not over before it asks
        engine.take_steps(1)
        assert first.result(PATIENCE_S) >= 1
        engine.open()
    assert all(answer(job) == job.work.chunks for job in jobs)


def test_a_call_that_raises_harms_no_job(make_host: MakeHost) -> None:
    engine = ScriptedEngine()
    host = make_host(engine)
    [job] = submit(host, Task("a", 3))

    def fail() -> None:
        raise KeyError("mine")

    engine.open()
    with pytest.raises(KeyError, match="mine"):
        host.call(fail)
    assert answer(job) == job.work.chunks
    assert host.is_ready


def test_a_call_that_loses_the_device_ends_the_engine(make_host: MakeHost) -> None:
    host = make_host(ScriptedEngine())

    def lose() -> None:
        raise StickyDeviceError("gone")

    with pytest.raises(StickyDeviceError):
        host.call(lose)
    with pytest.raises(EngineFailed):
        host.call(list)


def test_calls_wait_while_warming_and_are_refused_before_the_start_and_after_the_end(
    make_host: MakeHost,
) -> None:
    engine = ScriptedEngine(hold=["warm"])
    host = make_host(engine, start=False)
    with pytest.raises(NotReady):
        host.call(list)
    host.start()
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(host.call, list)
        engine.release("warm")
        assert early.result(PATIENCE_S) == []
    host.stop(PATIENCE_S)
    with pytest.raises(Draining):
        host.call(list)


def test_waiting_for_jobs_counts_those_that_wait_and_those_that_run(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=1)
    host = make_host(engine)
    busy(host, engine, steps=2)
    [waiting] = submit(host, Task("mine", 1))
    host.wait_until_unused(lambda task: task.name == "another")
    with ThreadPoolExecutor(1) as pool:
        gone = pool.submit(host.wait_until_unused, lambda task: task.name == "mine")
        engine.open()
        gone.result(PATIENCE_S)
    assert waiting.done
    assert host.jobs.open_jobs == 0


def test_a_host_is_loading_once_it_is_started_and_loads_nothing_after_a_stop(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, go_on = ScriptedEngine(), threading.Event()
    host = make_host(engine, start=False)
    run = host.loop.run

    def run_late() -> None:
        assert go_on.wait(PATIENCE_S)
        run()

    monkeypatch.setattr(host.loop, "run", run_late)
    host.start()
    assert host.state is State.LOADING
    host.stop(timeout_s=0.0)
    go_on.set()
    for thread in host._threads:
        thread.join(PATIENCE_S)
    assert engine.calls == []
    with pytest.raises(Draining):
        host.call(list)
