"""The probe counts each moment of a step once, and a report has the steps of its span."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.qwen_vl.answers import Answered
from benchmarks.serving.step_probe import FirstTokenMarks, PhaseClock
from benchmarks.serving.step_report import WAITS, probe_figures, steps_table, waits_table

PLAN = SimpleNamespace(decode=[1, 2], prefill=[SimpleNamespace(chunks=[3])])


class Engine:
    """A step whose launch has a part of its own."""

    has_work = True

    def put(self) -> None:
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass

    def launch(self, plan: Any) -> str:
        self.put()
        return "launched"

    def run_once(self) -> bool:
        return self.has_work and self.launch(PLAN) == "launched"


def test_phases_add_up_and_only_rounds_with_a_step_are_kept() -> None:
    clock = PhaseClock()
    own: Any = type("Own", (Engine,), {})
    for method in ("put", "launch", "run_once"):
        clock.time(own, method, {"run_once": "round"}.get(method, method))
    run: Any = clock.end_rounds(own.run_once)
    own.launch = clock.note_plan(own.launch)
    engine = own()
    began = time.perf_counter()
    assert run(engine) is True
    elapsed = time.perf_counter() - began
    engine.has_work = False
    assert run(engine) is False
    (step,) = clock.rounds
    assert (step["rows"], step["prompts"]) == (2, 1)
    assert set(step["phases"]) == {"round", "launch", "put"}
    for kind in (0, 1):
        assert step["phases"]["put"][kind] >= 0.02
        assert all(each[kind] >= 0 for each in step["phases"].values())
        assert sum(each[kind] for each in step["phases"].values()) <= elapsed, "counted once"


def test_a_step_that_raises_leaves_the_clock_as_it_was() -> None:
    clock = PhaseClock()
    own: Any = type("Own", (Engine,), {"put": lambda self: 1 / 0})
    for method in ("put", "launch", "run_once"):
        clock.time(own, method, method)
    run: Any = clock.end_rounds(own.run_once)
    with pytest.raises(ZeroDivisionError):
        run(own())
    assert len(clock._inside) == 1


class Job:
    """The times of a job, whose clock the test sets."""

    id, submitted_at, admitted_at = "x/1", 10.0, 11.0

    def __init__(self) -> None:
        self.now = 13.0

    def clock(self) -> float:
        return self.now


def test_a_first_token_is_marked_on_its_way_and_later_ones_are_not() -> None:
    marks, job = FirstTokenMarks(), Job()
    submit = marks.note_head(lambda *_: "submitted")
    reset, token = marks.note_launch(lambda *_: None), marks.note_token(lambda *_: None)
    read = marks.note_read(lambda _, chunks, reader: chunks)
    sequence, submission = SimpleNamespace(job=job, num_launched=0), SimpleNamespace(_job=job)
    assert submit(None, [], SimpleNamespace(request_id="x", began_at=9.0)) == "submitted"
    reset(None, [sequence])
    token(None, sequence, 16.0)
    job.now = 20.0
    assert read(submission, ["a"], None) == ["a"]
    sequence.num_launched = 1
    reset(None, [sequence])  # read again after a preemption
    read(submission, ["b"], None)
    assert marks.requests == {"x": [9.0, 10.0, 11.0, 13.0, 16.0, 20.0]}
    assert not marks._marks


def test_a_report_has_the_steps_of_its_span_by_kind() -> None:
    def step(at: float, prompts: int, put_s: float) -> dict[str, Any]:
        phases = {"put": [put_s, 0.001], "step": [0.001, 0.001]}
        return {"at": at, "rows": 4, "prompts": prompts, "phases": phases}

    steps = [step(1.0, 0, 9.0), *[step(2.0, 0, 0.002) for _ in range(3)], step(2.5, 2, 0.006)]
    ways = {"x": [1.6, 1.7, 1.9, 2.2, 2.6, 3.1], "other": [0.0] * 6}
    found = {"rounds": steps, "requests": ways}
    answers = [
        Answered(1.5, [3.7, 3.8], 3.9, id="chatcmpl-x"), Answered(1.6, ended=1.7, error="gone"),
    ]  # fmt: skip
    figures = probe_figures(found, answers)
    plain, mixed, slow = (
        figures["steps"][name] for name in ("without prompts", "with prompts", "slowest 1 %")
    )
    assert (plain["count"], mixed["count"], slow["count"]) == (3, 1, 1)
    assert plain["put"] == pytest.approx([2, 1])
    assert plain["total_ms"] == pytest.approx(3)
    assert plain["copy"] == [0, 0]
    assert (slow["prompts"], slow["total_ms"]) == (2, pytest.approx(7))
    means = [figures["requests"][name]["mean_ms"] for name in WAITS]
    assert means == pytest.approx([100, 100, 200, 300, 400, 500, 600])
    assert sum(means) == pytest.approx(answers[0].ttft_ms)
    assert list(steps_table({"1 x text": figures}))[1][:5] == (
        "1 x text: without prompts", "3", "4.0", "0.0", "3.00",
    )  # fmt: skip
    assert list(waits_table({"1 x text": figures}))[1][5] == "400.0 (400.0, 400.0)"
    late = Answered(50.0, [51.0], 52.0, id="chatcmpl-y")
    assert probe_figures(found, [late]) == {"steps": {}, "requests": {}}
