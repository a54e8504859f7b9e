"""Recording steps of live traffic: one recording at a time, and a failing recorder harms no job."""

from __future__ import annotations

import pytest

from predictors.errors import Draining, NotReady, Overloaded, ServingError
from predictors.serving.host import EngineHost
from tests.fakes import PATIENCE_S, ScriptedEngine, Task, answer
from tests.serving.conftest import MakeHost, submit


class Recorder:
    """Writes down its calls; raises in the method `fails_in`."""

    def __init__(self, fails_in: str = "") -> None:
        self.calls: list[str] = []
        self.fails_in = fails_in

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call == self.fails_in:
            raise OSError("no trace today")

    def start(self) -> None:
        self._note("start")

    def before_step(self) -> None:
        self._note("before")

    def after_step(self) -> None:
        self._note("after")

    def stop(self) -> None:
        self._note("stop")


def host_of_rounds(make_host: MakeHost) -> EngineHost[Task, str]:
    """A ready host without threads: the test calls `loop.run_once`."""
    host = make_host(ScriptedEngine(gated=False), start=False)
    host.loop.load_and_warm()
    return host


def test_the_next_steps_are_recorded_and_no_more(make_host: MakeHost) -> None:
    host, recorder = host_of_rounds(make_host), Recorder()
    [job] = submit(host, Task("a", steps=4))
    host.loop.run_once()
    recording = host.record(recorder, 2)
    assert recorder.calls == []  # until the next step
    while host.loop.run_once():
        pass
    assert recorder.calls == ["start", "before", "after", "before", "after", "stop"]
    assert recording.outcome.result(0) == 2
    assert answer(job) == job.work.chunks


def test_a_recording_that_is_ended_has_the_steps_that_were_taken(make_host: MakeHost) -> None:
    host, recorder = host_of_rounds(make_host), Recorder()
    submit(host, Task("a", steps=4))
    recording = host.record(recorder, 100)
    host.loop.run_once()
    recording.end()
    assert not recording.outcome.done()  # the recorder is stopped on the engine thread
    host.loop.run_once()
    assert recorder.calls == ["start", "before", "after", "stop"]
    assert recording.outcome.result(0) == 1


def test_ending_a_recording_wakes_an_idle_engine(make_host: MakeHost) -> None:
    host, recorder = make_host(ScriptedEngine(gated=False)), Recorder()
    recording = host.record(recorder, 1)
    recording.end()
    assert recording.outcome.result(PATIENCE_S) == 0
    assert recorder.calls == []


def test_only_one_recording_is_on_at_a_time(make_host: MakeHost) -> None:
    host = host_of_rounds(make_host)
    first = host.record(Recorder(), 1)
    with pytest.raises(Overloaded, match="recorded already"):
        host.record(Recorder(), 1)
    first.end()
    host.loop.run_once()
    host.record(Recorder(), 1)


@pytest.mark.parametrize("fails_in", ["start", "before", "after", "stop"])
def test_a_recorder_that_fails_ends_its_recording_and_nothing_else(
    make_host: MakeHost, fails_in: str
) -> None:
    host, recorder = host_of_rounds(make_host), Recorder(fails_in)
    [job] = submit(host, Task("a", steps=3))
    recording = host.record(recorder, 2)
    while host.loop.run_once():
        pass
    error = recording.outcome.exception(0)
    assert isinstance(error, ServingError)
    assert isinstance(error.__cause__, OSError)
    assert recorder.calls[-1] == fails_in  # it is not called again
    assert answer(job) == job.work.chunks
    host.record(Recorder(), 1)


def test_a_recording_without_a_step_fails_when_the_host_stops(make_host: MakeHost) -> None:
    host = make_host(ScriptedEngine())
    recording = host.record(Recorder(), 1)
    host.stop(PATIENCE_S)
    assert isinstance(recording.outcome.exception(PATIENCE_S), Draining)
    with pytest.raises(Draining):
        host.record(Recorder(), 1)


def test_a_host_that_is_not_ready_records_nothing(make_host: MakeHost) -> None:
    with pytest.raises(NotReady):
        make_host(ScriptedEngine(), start=False).record(Recorder(), 1)
