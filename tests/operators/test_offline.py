"""Offline runs on the test's own thread: recorded steps, failures and Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest

from predictors.errors import EngineFailed, InvalidRequest, ServingError, StepFailed
from predictors.operators.offline import offline_request, record_steps, warm_model
from predictors.protocol.v2.values import V2Request
from predictors.serving.lifecycle import State
from tests.fakes import ScriptedEngine
from tests.http.echo import PIXEL, TaskPredictor, small_settings


class Steps:
    """A recorder that keeps its calls; `on_step` is called at the start of each step."""

    def __init__(self, on_step: Callable[[int], None] = lambda step: None) -> None:
        self.calls: list[str] = []
        self._on_step = on_step

    def start(self) -> None:
        self.calls.append("start")

    def before_step(self) -> None:
        self.calls.append("step")
        self._on_step(self.calls.count("step"))

    def after_step(self) -> None:
        self.calls.append("/step")

    def stop(self) -> None:
        self.calls.append("stop")


@pytest.fixture
def engine() -> ScriptedEngine:
    """A free-running engine."""
    return ScriptedEngine(gated=False)


@pytest.fixture
def model(engine: ScriptedEngine) -> Iterator[TaskPredictor]:
    """A warm model whose prompts are names of tasks."""
    predictor = TaskPredictor("tasks", engine, small_settings())
    warm_model(predictor)
    yield predictor
    predictor.stop()


def work(*prompts: str, steps: int) -> V2Request:
    """A request with a row of `steps` steps per prompt."""
    return offline_request("tasks", prompts, None, {"steps": steps})


def test_an_offline_request_has_a_row_per_prompt_with_the_same_picture() -> None:
    told = offline_request("m", ["a", "b"], PIXEL, {"seed": 7})
    assert [(t.name, t.shape, list(t.data)) for t in told.inputs] == [
        ("prompt", (2,), [b"a", b"b"]),
        ("image", (2,), [PIXEL, PIXEL]),
    ]
    assert told.parameters == {"seed": 7}


def test_a_request_is_repeated_until_all_steps_are_recorded(
    model: TaskPredictor, engine: ScriptedEngine
) -> None:
    recorder = Steps()
    assert record_steps(model, work("a", "b", steps=3), recorder, 7) > 0
    assert recorder.calls == ["start", *["step", "/step"] * 7, "stop"]
    assert engine.steps == [("a", "b")] * 7
    assert (len(model.host.jobs.running), model.host.jobs.waiting) == (0, 0)


def test_a_request_is_cancelled_when_all_steps_are_recorded(
    model: TaskPredictor, engine: ScriptedEngine
) -> None:
    record_steps(model, work("a", steps=100), Steps(), 4)
    assert len(engine.steps) == 4
    assert (len(model.host.jobs.running), model.host.jobs.waiting) == (0, 0)


def test_the_failure_of_the_request_is_raised_and_the_recorder_stops(
    model: TaskPredictor, engine: ScriptedEngine
) -> None:
    engine.poison["a"] = RuntimeError("x")
    recorder = Steps()
    with pytest.raises(StepFailed):
        record_steps(model, work("a", steps=3), recorder, 4)
    assert recorder.calls[-1] == "stop"


def test_a_request_that_can_never_run_is_refused_and_records_nothing(
    model: TaskPredictor, engine: ScriptedEngine
) -> None:
    engine.budget = 0
    recorder = Steps()
    with pytest.raises(InvalidRequest, match="exceeds"):
        record_steps(model, work("a", steps=3), recorder, 4)
    assert recorder.calls == []
    engine.budget = None
    record_steps(model, work("a", steps=3), recorder, 2)  # the next one is not told of another


def test_a_failing_recorder_raises_a_serving_error(model: TaskPredictor) -> None:
    def fail(step: int) -> None:
        raise RuntimeError("x")

    with pytest.raises(ServingError, match="the profiler failed"):
        record_steps(model, work("a", steps=3), Steps(fail), 4)
    assert len(model.host.jobs.running) == 0


def test_ctrl_c_is_raised_between_two_steps_and_fails_no_job(
    model: TaskPredictor, engine: ScriptedEngine
) -> None:
    def interrupt(step: int) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    recorder = Steps(interrupt)
    was = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        record_steps(model, work("a", steps=30), recorder, 20)
    assert recorder.calls == ["start", "step", "/step", "step", "/step", "stop"]
    assert len(engine.steps) == 2
    assert signal.getsignal(signal.SIGINT) is was


@pytest.mark.parametrize("verb", ["load", "warm"])
def test_a_failed_warm_up_is_one_sentence(engine: ScriptedEngine, verb: str) -> None:
    engine.raise_in[verb] = ValueError("a path that nobody should see")
    model = TaskPredictor("tasks", engine, small_settings())
    with pytest.raises(EngineFailed, match=r"^tasks can't be warmed: ValueError$"):
        warm_model(model)
    assert model.host.state is State.STOPPED


def test_ctrl_c_during_the_load_is_raised_as_it_is(engine: ScriptedEngine) -> None:
    engine.raise_in["load"] = KeyboardInterrupt()
    model = TaskPredictor("tasks", engine, small_settings())
    with pytest.raises(KeyboardInterrupt):
        warm_model(model)
    assert model.host.state is State.STOPPED
