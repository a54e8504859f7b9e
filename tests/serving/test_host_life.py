"""Start, readiness, drain and stop: ready means warm, and no accepted work is lost."""

from __future__ import annotations

import itertools
import logging
import threading

import pytest

from predictors.errors import Draining, NotReady, Overloaded
from predictors.serving.job import Job
from predictors.serving.lifecycle import StartProgress, State
from tests.fakes import PATIENCE_S, ScriptedEngine, Task, answer, failure, wait_idle
from tests.serving.conftest import MakeHost, busy, sample, submit


def in_background(work: object, *args: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=args)  # type: ignore[arg-type]
    thread.start()
    return thread


def test_ready_means_loaded_and_warm(make_host: MakeHost) -> None:
    engine = ScriptedEngine(hold=["load", "warm"])
    host = make_host(engine, start=False)
    is_ready = threading.Event()  # set after the series of the state
    host.events.subscribe(on_state=lambda state: state is State.READY and is_ready.set())
    assert (host.state, host.is_ready) == (State.NEW, False)
    with pytest.raises(NotReady, match="new"):
        submit(host, Task("a"))
    host.start()
    assert host.lifecycle.wait_for(State.LOADING, timeout_s=PATIENCE_S)
    with pytest.raises(NotReady, match="loading"):
        submit(host, Task("a"))
    with pytest.raises(NotReady):
        host.wait_ready(0)
    engine.release("load")
    assert host.lifecycle.wait_for(State.WARMING, timeout_s=PATIENCE_S)
    with pytest.raises(NotReady, match="warming up"):
        host.check_accepting(1)
    assert not host.is_ready
    assert sample("predictors_model_ready", host) == 0
    engine.release("warm")
    host.wait_ready(PATIENCE_S)
    assert host.is_ready
    assert is_ready.wait(PATIENCE_S)
    assert sample("predictors_model_ready", host) == 1
    assert sample("predictors_admission_rejected_total", host, reason="not_ready") == 3
    assert engine.calls == [("load",), ("warm",)]


def test_starting_twice_loads_once(make_host: MakeHost) -> None:
    engine = ScriptedEngine()
    host = make_host(engine)
    host.start()
    host.start()
    host.wait_ready(PATIENCE_S)
    assert engine.calls.count(("load",)) == 1


def test_progress_has_phase_and_shape(make_host: MakeHost) -> None:
    seen: list[StartProgress] = []
    host = make_host(ScriptedEngine(warm_shapes=["256x256", "512x512"]), start=False)
    host.events.subscribe(on_progress=seen.append)
    host.start()
    host.wait_ready(PATIENCE_S)
    assert seen == [
        StartProgress("load"),
        StartProgress("warmup"),
        StartProgress("warmup", "256x256", 1, 2),
        StartProgress("warmup", "512x512", 2, 2),
    ]


def test_on_warm_is_called_before_the_first_request_is_served(
    make_host: MakeHost,
) -> None:
    seen: list[State] = []
    engine = ScriptedEngine()
    host = make_host(engine, start=False)
    host.events.subscribe(on_warm=lambda: seen.append(host.state))
    host.start()
    host.wait_ready(PATIENCE_S)
    assert seen == [State.WARMING]


def test_an_on_progress_callback_that_raises_does_not_stop_the_start(make_host: MakeHost) -> None:
    host = make_host(ScriptedEngine(), start=False)

    def on_progress(progress: StartProgress) -> None:
        raise OSError("the terminal is gone")

    host.events.subscribe(on_progress=on_progress)
    host.start()
    host.wait_ready(PATIENCE_S)


def test_a_drain_finishes_accepted_jobs_and_refuses_new_ones(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=2)
    host = make_host(engine)
    jobs = busy(host, engine, steps=3)
    jobs += [submit(host, Task(f"w{i}", steps=2))[0] for i in range(7)]
    draining = in_background(host.drain, PATIENCE_S)
    assert host.lifecycle.wait_for(State.DRAINING, timeout_s=PATIENCE_S)
    assert not host.is_ready
    assert host.is_alive
    with pytest.raises(Draining):
        submit(host, Task("new"))
    assert not any(job.done for job in jobs)
    engine.open()
    draining.join(PATIENCE_S)
    assert not draining.is_alive()
    assert all(job.done for job in jobs)  # at the moment when the drain returns
    assert [answer(job) for job in jobs] == [job.work.chunks for job in jobs]
    host.stop(PATIENCE_S)
    assert host.state is State.STOPPED
    assert engine.calls[-1] == ("close",)
    assert sample("predictors_admission_rejected_total", host, reason="draining") == 1


def test_jobs_left_after_the_drain_time_fail_with_draining(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=1)
    host = make_host(engine)
    [running] = busy(host, engine)
    [waiting] = submit(host, Task("waiting"))
    host.drain(0.01)
    assert isinstance(failure(running), Draining)
    assert isinstance(failure(waiting), Draining)
    engine.open()
    host.stop(PATIENCE_S)
    assert engine.active == []
    assert ("evict", "long0") in engine.calls
    assert sample("predictors_jobs_total", host, reason="draining") == 2


def test_a_second_drain_with_less_time_ends_the_first_early(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=1)
    host = make_host(engine)
    [running] = busy(host, engine)
    first = in_background(host.drain, PATIENCE_S)
    assert host.lifecycle.wait_for(State.DRAINING, timeout_s=PATIENCE_S)
    host.drain(0)
    assert isinstance(failure(running), Draining)
    first.join(PATIENCE_S)  # though the engine is still inside its step
    assert not first.is_alive()
    host.drain(10 * PATIENCE_S)  # nor does a later one wait for the step
    assert len(host.jobs.running) == 1


def test_a_drain_of_an_idle_host_is_over_at_once(make_host: MakeHost) -> None:
    host = make_host(ScriptedEngine())
    host.drain(PATIENCE_S)
    assert host.state is State.DRAINING


def test_no_job_is_accepted_after_the_drain_has_ended(make_host: MakeHost) -> None:
    """Submitters race with the drain: every job is answered, or refused with `Draining`."""
    engine = ScriptedEngine(slots=4, gated=False)
    host = make_host(engine, capacity=1000)
    accepted: list[object] = []
    refused: list[Exception] = []
    started = threading.Barrier(5)

    def submit_until_refused(worker: int) -> None:
        started.wait(PATIENCE_S)
        for i in itertools.count():
            try:
                accepted.extend(submit(host, Task(f"{worker}-{i}")))
            except Overloaded:  # however late the drain comes
                pass
            except Draining as error:
                refused.append(error)
                return

    workers = [in_background(submit_until_refused, worker) for worker in range(4)]
    started.wait(PATIENCE_S)
    host.drain(PATIENCE_S)
    unanswered = [job for job in accepted if not job.done]  # type: ignore[attr-defined]
    for worker in workers:
        worker.join(PATIENCE_S)
    assert unanswered == []
    assert len(refused) == 4
    wait_idle(host)
    assert sample("predictors_jobs_total", host, reason="ok") == len(accepted)


def test_stopping_during_the_load_never_becomes_ready(make_host: MakeHost) -> None:
    engine, has_begun = ScriptedEngine(hold=["load"]), threading.Event()
    host = make_host(engine, start=False)
    host.events.subscribe(on_progress=lambda progress: has_begun.set())
    host.start()
    assert has_begun.wait(PATIENCE_S)
    stopping = in_background(host.stop, PATIENCE_S)
    assert host.lifecycle.wait_for(State.DRAINING, State.STOPPED, timeout_s=PATIENCE_S)
    with pytest.raises(Draining):
        host.wait_ready(PATIENCE_S)
    engine.release("load")
    stopping.join(PATIENCE_S)
    assert engine.calls == [("load",), ("close",)]
    assert host.state is State.STOPPED


def test_stopping_twice_or_before_the_start_is_allowed(make_host: MakeHost) -> None:
    engine = ScriptedEngine()
    host = make_host(engine, start=False)
    host.stop(PATIENCE_S)
    host.stop(PATIENCE_S)
    host.start()
    assert host.state is State.STOPPED
    assert engine.calls == []


def test_an_engine_that_is_stuck_does_not_hold_up_the_stop(
    make_host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ScriptedEngine(slots=1)
    host = make_host(engine)
    [job] = busy(host, engine)
    host.stop(timeout_s=0.01)
    assert isinstance(failure(job), Draining)
    assert "stuck" in caplog.text
    assert host.state is State.STOPPED
    assert host.is_left_behind
    engine.open()
    for thread in host._threads:
        thread.join(PATIENCE_S)
    assert not host.is_left_behind


def test_a_stop_during_the_load_reports_no_fault(
    make_host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    loading, go_on = threading.Event(), threading.Event()

    class SlowToLoad(ScriptedEngine):
        def load(self) -> None:
            loading.set()
            go_on.wait(PATIENCE_S)

    caplog.set_level(logging.INFO)
    host = make_host(SlowToLoad(), start=False)
    host.start()
    assert loading.wait(PATIENCE_S)
    host.stop(timeout_s=0.01)
    assert f"{host.model}: its start is not over, and is left unfinished" in caplog.messages
    assert {line.levelname for line in caplog.records} == {"INFO"}
    go_on.set()
    for thread in host._threads:
        thread.join(PATIENCE_S)


def test_jobs_running_at_the_stop_are_evicted_before_the_engine_is_closed(
    make_host: MakeHost,
) -> None:
    looking, go_on = threading.Event(), threading.Event()

    class SlowToLook(ScriptedEngine):
        """Never steps its jobs; `busy` returns when the test lets it."""

        @property
        def busy(self) -> bool:
            looking.set()
            assert go_on.wait(PATIENCE_S)
            return False

    engine = SlowToLook(slots=1)
    host = make_host(engine)
    [job] = submit(host, Task("a"))
    assert looking.wait(PATIENCE_S)
    host.stop(timeout_s=0.01)  # the engine thread is inside `busy` meanwhile
    assert isinstance(failure(job), Draining)
    go_on.set()
    host.stop(PATIENCE_S)
    assert engine.calls[-2:] == [("evict", "a"), ("close",)]


def test_an_idle_host_does_not_poll(make_host: MakeHost) -> None:
    looks = 0

    class Counting(ScriptedEngine):
        @property
        def active(self) -> list[Job[Task, str]]:  # type: ignore[override]
            nonlocal looks
            looks += 1
            return list(super().active)

    host = make_host(Counting(gated=False))
    for i in range(50):
        answer(submit(host, Task(f"t{i}"))[0])  # starts a new event loop: the host idles
    host.stop(PATIENCE_S)
    assert looks <= 50 * 4


def test_a_failing_close_is_logged_and_the_stop_goes_on(
    make_host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ScriptedEngine()
    engine.raise_in["close"] = RuntimeError("device busy")
    host = make_host(engine)
    host.stop(PATIENCE_S)
    assert host.state is State.STOPPED
    assert "closing the engine failed" in caplog.text


def test_no_thread_is_left_behind(make_host: MakeHost) -> None:
    host = make_host(ScriptedEngine(gated=False))
    answer(submit(host, Task("a"))[0])
    host.stop(PATIENCE_S)
    assert not [t.name for t in threading.enumerate() if t.name.startswith(f"{host.model}-")]


def test_every_engine_method_but_validate_runs_on_one_thread(make_host: MakeHost) -> None:
    threads: dict[str, set[str]] = {}

    class Watched(ScriptedEngine):
        def __getattribute__(self, name: str) -> object:
            if name in {"load", "warm", "admit", "step", "evict", "close", "active", "busy"}:
                threads.setdefault(name, set()).add(threading.current_thread().name)
            return super().__getattribute__(name)

    host = make_host(Watched(slots=1, gated=False))
    jobs = [submit(host, Task(f"t{i}", steps=3))[0] for i in range(6)]
    jobs[3].cancel()
    for job in (jobs[i] for i in (0, 1, 2, 4, 5)):
        answer(job)
    host.stop(PATIENCE_S)
    assert threads.keys() == {"load", "warm", "admit", "step", "evict", "close", "active", "busy"}
    assert set().union(*threads.values()) == {f"{host.model}-engine"}


def test_a_host_without_threads_runs_one_round_at_a_time(make_host: MakeHost) -> None:
    engine = ScriptedEngine(gated=False)
    host = make_host(engine, start=False)
    host.loop.load_and_warm()
    [job] = submit(host, Task("a", steps=2))
    assert [host.loop.run_once(), host.loop.run_once(), host.loop.run_once()] == [True, True, False]
    assert answer(job) == ["a:1", "a:2"]
    host.stop(PATIENCE_S)
    assert engine.calls[-1] == ("close",)
