"""Failures: a row that makes steps fail does so alone, a lost device ends the engine, and a stall
is noticed.
"""

from __future__ import annotations

import logging
import threading
import traceback

import pytest

from predictors.errors import EngineFailed, InvalidRequest, OutOfMemory, StepFailed
from predictors.observe import tracing
from predictors.serving.engine import StickyDeviceError
from predictors.serving.job import Job
from predictors.serving.lifecycle import State
from tests.fakes import (
    PATIENCE_S,
    EchoEngine,
    OutOfMemoryError,
    ScriptedClock,
    ScriptedEngine,
    Task,
    answer,
    failure,
    wait_idle,
)
from tests.serving.conftest import MakeHost, busy, sample, submit

SECRET = "/root/weights/model.safetensors at 0x7f3a"


def eight() -> list[Task]:
    return [Task(f"t{i}", steps=1 + i % 3) for i in range(8)]


@pytest.mark.parametrize("culprit", range(8))
def test_one_poisonous_row_of_eight_fails_alone(make_host: MakeHost, culprit: int) -> None:
    engine = ScriptedEngine(slots=8, gated=False)
    engine.poison[f"t{culprit}"] = ValueError(SECRET)
    host = make_host(engine)
    jobs = submit(host, *eight())
    for i, job in enumerate(jobs):
        if i == culprit:
            error = failure(job)
            assert isinstance(error, StepFailed)
            assert "0x" not in error.message
            assert "/" not in error.message
            assert isinstance(error.__cause__, ValueError)
        else:
            assert answer(job) == job.work.chunks  # no step twice, none missing
    wait_idle(host)  # a job is counted when its slot is free again
    assert sample("predictors_jobs_total", host, reason="poisoned") == 1
    assert sample("predictors_jobs_total", host, reason="ok") == 7
    assert sample("predictors_batch_splits_total", host, reason="other") == 3
    assert sample("predictors_batch_splits_total", host, reason="oom") == 0
    assert host.state is State.READY


def test_neighbours_of_a_poisonous_row_get_the_same_as_alone(make_host: MakeHost) -> None:
    """A job's chunk is its running sum, which depends on every step."""

    class Summing(EchoEngine[Task, float]):
        def step(self, jobs: object) -> None:
            if any(job.work.name == "poison" for job in jobs):  # type: ignore[attr-defined]
                raise ValueError("poison")
            super().step(jobs)  # type: ignore[arg-type]

    def run(*tasks: Task) -> dict[str, list[float]]:
        engine = Summing(
            8,
            steps=lambda task: task.steps,
            chunk=lambda task, i: sum(hash((len(task.name), k)) % 997 / k for k in range(1, i + 1)),
        )
        jobs: list[Job[Task, float]] = make_host(engine).submit(
            tasks, request_id="r", deadline=None
        )  # type: ignore[assignment]
        return {j.work.name: answer(j) for j in jobs if j.work.name != "poison"}

    tasks = [Task("x" * i, steps=i) for i in range(1, 8)]
    alone = {task.name: run(task)[task.name] for task in tasks}
    assert run(*tasks[:3], Task("poison", steps=4), *tasks[3:]) == alone


def test_a_row_that_turns_poisonous_later_fails_at_that_step(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=4)
    host = make_host(engine)
    good, bad = submit(host, Task("good", steps=4), Task("bad", steps=4))
    engine.take_steps(2)
    engine.poison["bad"] = ValueError("now")
    engine.open()
    assert answer(good) == good.work.chunks
    assert isinstance(failure(bad), StepFailed)
    assert engine.active == []


def test_several_culprits_fail_each_alone(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=8, gated=False)
    for i in (0, 3, 4, 7):
        engine.poison[f"t{i}"] = RuntimeError("poison")
    jobs = submit(make_host(engine), *eight())
    for i in (1, 2, 5, 6):
        assert answer(jobs[i]) == jobs[i].work.chunks
    assert {type(failure(jobs[i])) for i in (0, 3, 4, 7)} == {StepFailed}


def test_a_step_that_does_not_fit_into_memory_is_halved_and_all_jobs_succeed(
    make_host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ScriptedEngine(slots=8, gated=False)
    engine.oom_width = 3
    host = make_host(engine)
    jobs = submit(host, *eight())
    assert all(answer(job) == job.work.chunks for job in jobs)
    wait_idle(host)
    splits = sample("predictors_batch_splits_total", host, reason="oom")
    assert splits > 0
    assert sample("predictors_batch_splits_total", host, reason="other") == 0
    lines = [r for r in caplog.records if "did not fit into memory" in r.getMessage()]
    assert len(lines) == splits
    assert all(vars(r)["jobs"] > 3 and r.levelname == "WARNING" for r in lines)
    assert sample("predictors_jobs_total", host, reason="ok") == 8


def test_the_widest_step_that_fits_is_kept(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=3, gated=False)
    engine.oom_width = 2
    jobs = submit(make_host(engine), Task("a", 1), Task("b", 3), Task("c", 3))
    assert all(answer(job) == job.work.chunks for job in jobs)
    assert engine.steps == [("a", "b", "c"), ("a",), ("b", "c"), ("b", "c"), ("b", "c")]


def test_a_job_that_does_not_fit_even_alone_is_out_of_memory(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=4, gated=False)
    engine.poison["giant"] = OutOfMemoryError(SECRET)
    host = make_host(engine)
    small, giant = submit(host, Task("small", steps=2), Task("giant"))
    assert answer(small) == small.work.chunks
    error = failure(giant)
    assert isinstance(error, OutOfMemory)
    assert "/" not in error.message
    assert sample("predictors_jobs_total", host, reason="oom") == 1


def test_a_failed_try_holds_no_memory_while_a_smaller_one_runs(make_host: MakeHost) -> None:
    """An exception's frames keep their locals alive, which are tensors on a device."""
    alive: list[int] = []
    seen: list[int] = []

    class Tensor:
        def __init__(self) -> None:
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    class Hungry(EchoEngine[Task, str]):
        def step(self, jobs: object) -> None:
            seen.append(len(alive))
            tensor = Tensor()
            if len(jobs) > 1:  # type: ignore[arg-type]
                raise OutOfMemoryError(f"with {tensor}")
            super().step(jobs)  # type: ignore[arg-type]

    jobs = submit(make_host(Hungry(4)), *(Task(f"t{i}") for i in range(4)))
    for job in jobs:
        answer(job)
    assert seen == [0] * 7


def test_an_engine_that_raises_in_admit_fails_only_that_job(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=4)
    host = make_host(engine)
    engine.raise_in["admit"] = ValueError("bad input")
    [bad] = submit(host, Task("bad"))
    assert isinstance(failure(bad), StepFailed)
    del engine.raise_in["admit"]
    engine.open()
    [good] = submit(host, Task("good"))
    assert answer(good) == ["good:1"]


def test_a_serving_error_of_the_engine_reaches_the_caller_unchanged(
    make_host: MakeHost,
) -> None:
    engine = ScriptedEngine(gated=False)
    engine.poison["wrong"] = InvalidRequest("the picture is empty", param="image")
    [wrong] = submit(make_host(engine), Task("wrong"))
    error = failure(wrong)
    assert isinstance(error, InvalidRequest)
    assert error.param == "image"


def test_the_log_names_the_job_that_failed_and_the_reason(
    make_host: MakeHost, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ScriptedEngine(gated=False)
    engine.poison["bad"] = ValueError(SECRET)
    host = make_host(engine)
    monkeypatch.setattr(tracing, "exemplar", lambda: {"trace_id": "1f" * 16})
    with caplog.at_level(logging.ERROR):
        failure(submit(host, Task("bad"), request_id="req-7")[0])
    [record] = [r for r in caplog.records if "req-7" in r.getMessage()]
    assert vars(record)["request_id"] == "req-7"
    assert vars(record)["trace_id"] == "1f" * 16
    assert record.exc_info is not None
    assert SECRET in "".join(traceback.format_exception(record.exc_info[1]))


def test_a_lost_device_fails_all_jobs_and_ends_the_engine(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=2)
    host = make_host(engine)
    seen: list[EngineFailed] = []
    dead = threading.Event()
    host.events.subscribe(on_failed=seen.append)
    host.events.subscribe(on_failed=lambda error: dead.set())
    running = busy(host, engine)
    waiting = [submit(host, Task(f"w{i}"))[0] for i in range(5)]
    engine.poison["long1"] = StickyDeviceError(SECRET)
    engine.allow()
    errors = [failure(job) for job in running + waiting]
    assert {type(error) for error in errors} == {EngineFailed}
    assert not any("0x" in str(error) for error in errors)
    assert dead.wait(PATIENCE_S)
    assert len(seen) == 1
    assert host.state is State.FAILED
    assert not host.is_alive
    assert not host.is_ready
    with pytest.raises(EngineFailed):
        submit(host, Task("after"))
    with pytest.raises(EngineFailed):
        host.check_accepting(1)
    assert len(engine.steps) == 1  # nothing was tried again
    assert sample("predictors_engine_failures_total", host) == 1
    assert sample("predictors_jobs_total", host, reason="engine_failed") == 7
    assert sample("predictors_requests_running", host) == 0
    assert sample("predictors_requests_waiting", host) == 0
    assert sample("predictors_model_ready", host) == 0


def test_a_failing_eviction_ends_the_engine(
    make_host: MakeHost,
) -> None:
    engine = ScriptedEngine(slots=1)
    host = make_host(engine)
    [job] = busy(host, engine)
    engine.raise_in["evict"] = RuntimeError("pages lost")
    job.cancel()
    [waiting] = submit(host, Task("waiting"))
    engine.allow()
    assert isinstance(failure(waiting), EngineFailed)
    assert host.lifecycle.wait_for(State.FAILED, timeout_s=PATIENCE_S)


def test_an_on_failed_callback_that_raises_does_not_hide_the_failure(make_host: MakeHost) -> None:
    engine = ScriptedEngine(gated=False)
    engine.poison["bad"] = StickyDeviceError("gone")
    host = make_host(engine)

    def on_failed(error: EngineFailed) -> None:
        raise RuntimeError("callback failed")

    host.events.subscribe(on_failed=on_failed)
    assert isinstance(failure(submit(host, Task("bad"))[0]), EngineFailed)
    host.stop(PATIENCE_S)
    assert host.state is State.FAILED
    assert ("close",) in engine.calls


@pytest.mark.parametrize(("verb", "phase"), [("load", "loading"), ("warm", "warming up")])
def test_an_engine_that_raises_at_the_start_leaves_a_clean_message(
    make_host: MakeHost, verb: str, phase: str
) -> None:
    engine = ScriptedEngine()
    engine.raise_in[verb] = FileNotFoundError(SECRET)
    called = threading.Event()
    host = make_host(engine, start=False)
    host.events.subscribe(on_failed=lambda error: called.set())
    host.start()
    with pytest.raises(EngineFailed, match=f"failed while {phase}") as failed:
        host.wait_ready(PATIENCE_S)
    assert "/" not in failed.value.message
    assert host.state is State.FAILED
    assert not host.is_alive
    assert called.wait(PATIENCE_S)
    with pytest.raises(EngineFailed):
        submit(host, Task("a"))


def test_a_serving_error_of_the_start_is_in_the_message(make_host: MakeHost) -> None:
    engine = ScriptedEngine()
    engine.raise_in["load"] = InvalidRequest("the checkpoint has no vae")
    host = make_host(engine, wait=False)
    with pytest.raises(EngineFailed, match="failed while loading: the checkpoint has no vae"):
        host.wait_ready(PATIENCE_S)


def test_only_an_unexpected_error_of_the_start_is_logged_with_a_traceback(
    make_host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    for error, traces in ((EngineFailed("a tensor is missing"), 0), (KeyError("a bug"), 1)):
        caplog.clear()
        engine = ScriptedEngine()
        engine.raise_in["load"] = error
        host = make_host(engine, wait=False)
        with caplog.at_level(logging.INFO), pytest.raises(EngineFailed):
            host.wait_ready(PATIENCE_S)
        assert len([record for record in caplog.records if record.exc_info]) == traces


def test_a_step_that_takes_too_long_is_a_stall(
    make_host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ScriptedClock()
    engine = ScriptedEngine(slots=1)
    host = make_host(engine, clock=clock, stall_timeout_s=120.0)
    busy(host, engine)
    clock.advance(120)
    assert host.is_alive
    clock.advance(0.1)
    assert not host.is_alive
    assert not host.is_ready
    [said] = [line for line in caplog.messages if "no step for" in line]  # once for each stall
    assert said.startswith(f"{host.model}: no step for 120 s; its thread is in\n")
    assert "in step" in said  # the engine's
    engine.take_steps(1)  # it was only slow
    engine.wait_in_step()
    assert host.is_alive
    assert host.is_ready


def test_an_engine_that_was_idle_for_long_is_not_stalled_by_its_next_job(
    make_host: MakeHost,
) -> None:
    clock = ScriptedClock()
    seen: list[bool] = []

    class SlowToAdmit(ScriptedEngine):
        def admit(self, job: Job[Task, str]) -> bool:
            seen.append(host.is_alive)
            if job.work.name == "slow":
                clock.advance(100)
            return super().admit(job)

    engine = SlowToAdmit(slots=1)
    host = make_host(engine, clock=clock, stall_timeout_s=120.0)
    [first] = submit(host, Task("first"))
    engine.take_steps(1)
    answer(first)
    wait_idle(host)
    clock.advance(5000)
    assert host.is_alive  # an idle engine is not stalled
    submit(host, Task("slow"))
    engine.wait_in_step()
    assert seen == [True, True]
    clock.advance(100)
    assert host.is_alive  # it came 200 s ago, but its step began only 100 s ago
    clock.advance(21)
    assert not host.is_alive


def test_a_job_that_is_never_stepped_is_a_stall(make_host: MakeHost) -> None:
    clock = ScriptedClock()

    class NeverBusy(ScriptedEngine):
        @property
        def busy(self) -> bool:
            return False

    host = make_host(NeverBusy(), clock=clock, stall_timeout_s=10.0)
    submit(host, Task("forgotten"))
    clock.advance(10.1)
    assert not host.is_alive


def test_a_slow_start_is_not_a_stall(make_host: MakeHost) -> None:
    clock = ScriptedClock()
    engine = ScriptedEngine(hold=["load"])
    host = make_host(engine, clock=clock, wait=False, stall_timeout_s=10.0)
    assert host.lifecycle.wait_for(State.LOADING, timeout_s=PATIENCE_S)
    clock.advance(5000)
    assert host.is_alive
    assert not host.is_ready
