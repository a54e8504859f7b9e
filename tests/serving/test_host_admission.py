"""Admission: which jobs are accepted, in which order, with which errors others are refused, and
how jobs leave the queue before they start.
"""

from __future__ import annotations

from contextlib import suppress
from threading import Event
from time import monotonic

import pytest

from predictors.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    StepFailed,
    TooLarge,
)
from predictors.serving.host import EngineHost
from predictors.serving.job import Job
from tests.fakes import PATIENCE_S, ScriptedClock, ScriptedEngine, Task, answer, failure, wait_idle
from tests.serving.conftest import MakeHost, busy, sample, submit


def names(*raw: str) -> list[Task]:
    return [Task(name) for name in raw]


def test_a_job_is_answered_with_all_it_emitted(make_host: MakeHost) -> None:
    engine = ScriptedEngine(gated=False)
    [job] = submit(make_host(engine), Task("a", steps=3))
    assert answer(job) == ["a:1", "a:2", "a:3"]
    assert engine.steps == [("a",)] * 3


def test_jobs_of_one_request_share_the_steps(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=4, gated=False)
    jobs = submit(make_host(engine), *names("a", "b", "c"))
    assert [answer(job) for job in jobs] == [["a:1"], ["b:1"], ["c:1"]]
    assert engine.steps == [("a", "b", "c")]


def test_a_late_arrival_joins_the_running_batch_at_the_next_step(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=2)
    host = make_host(engine)
    [first] = submit(host, Task("a", steps=3))
    engine.wait_in_step()
    [second] = submit(host, Task("b", steps=2))
    engine.open()
    assert answer(first) == ["a:1", "a:2", "a:3"]
    assert answer(second) == ["b:1", "b:2"]
    assert engine.steps == [("a",), ("a", "b"), ("a", "b")]


def test_job_ids_say_request_and_row(make_host: MakeHost) -> None:
    host = make_host(ScriptedEngine(gated=False))
    assert [j.id for j in submit(host, *names("a", "b"), request_id="req")] == ["req/0", "req/1"]
    assert [j.id for j in submit(host, Task("c"), request_id="one")] == ["one"]


def test_with_all_slots_busy_64_jobs_wait_and_the_next_is_refused_at_once(
    make_host: MakeHost,
) -> None:
    engine = ScriptedEngine(slots=2)
    host = make_host(engine)
    running = busy(host, engine, steps=1)
    waiting = [submit(host, Task(f"w{i}"))[0] for i in range(64)]
    assert (len(host.jobs.running), host.jobs.waiting) == (2, 64)
    with pytest.raises(Overloaded) as refused:  # while the engine is inside its step
        submit(host, Task("one too many"))
    assert refused.value.retry_after_s >= 1
    with pytest.raises(Overloaded):
        host.check_accepting(1)
    assert sample("predictors_admission_rejected_total", host, reason="queue_full") == 2
    assert sample("predictors_requests_waiting", host) == 64
    engine.open()
    assert all(answer(job) == job.work.chunks for job in running + waiting)


def test_free_slots_come_on_top_of_the_capacity(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=3)
    host = make_host(engine, capacity=2)
    [job] = submit(host, Task("a", steps=9))
    engine.wait_in_step()  # one slot is taken, two are free but closed until the step ends
    for i in range(4):
        submit(host, Task(f"w{i}"))
    with pytest.raises(Overloaded):
        submit(host, Task("one too many"))
    assert not job.done


def test_a_request_is_accepted_whole_or_not_at_all(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=1)
    host = make_host(engine, capacity=4)
    busy(host, engine)
    submit(host, *names("a", "b", "c"))
    with pytest.raises(Overloaded, match="3 of 4 places are taken, 2 needed"):
        submit(host, *names("d", "e"))
    assert host.jobs.waiting == 3
    submit(host, Task("f"))
    assert host.jobs.waiting == 4


def test_a_request_with_more_rows_than_the_queue_holds_is_invalid(make_host: MakeHost) -> None:
    host = make_host(ScriptedEngine(slots=8), capacity=4)
    with pytest.raises(InvalidRequest, match="1 to 4 rows, not 5"):
        submit(host, *names(*"abcde"))
    with pytest.raises(InvalidRequest):
        host.check_accepting(5)
    with pytest.raises(InvalidRequest):
        submit(host)
    assert sample("predictors_admission_rejected_total", host, reason="invalid_input") == 10


def test_a_row_that_could_never_run_is_named_and_no_row_is_accepted(make_host: MakeHost) -> None:
    engine = ScriptedEngine(budget=10)
    host = make_host(engine)
    with pytest.raises(InvalidRequest, match=r"^row 1: size 11 exceeds 10$") as refused:
        submit(host, Task("a", size=10), Task("b", size=11))
    assert (refused.value.row, refused.value.param) == (1, "size")
    with pytest.raises(InvalidRequest, match=r"^size 11 exceeds 10$"):
        submit(host, Task("b", size=11))
    assert engine.steps == []
    assert host.jobs.waiting == len(host.jobs.running) == 0


def test_the_kind_of_an_invalid_row_is_kept(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ScriptedEngine()

    def validate(work: Task) -> None:
        raise TooLarge("9 pixels are more than 4", param="image")

    monkeypatch.setattr(engine, "validate", validate)
    with pytest.raises(TooLarge, match=r"^row 0: 9 pixels are more than 4$"):
        submit(make_host(engine), *names("a", "b"))


def test_first_come_first_served(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=2)
    host = make_host(engine)
    busy(host, engine, steps=1)
    jobs = [submit(host, Task(name))[0] for name in "abcdef"]
    engine.open()
    for job in jobs:
        answer(job)
    assert engine.steps[1:] == [("a", "b"), ("c", "d"), ("e", "f")]


def test_a_small_job_passes_a_large_one_that_does_not_fit_yet(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=4, budget=10)
    host = make_host(engine)
    submit(host, Task("long", steps=3, size=6))
    engine.wait_in_step()
    large, small = submit(host, Task("large", size=5), Task("small", steps=1, size=4))
    engine.open()
    assert answer(large) == ["large:1"]
    assert answer(small) == ["small:1"]
    assert engine.steps == [("long",), ("long", "small"), ("long",), ("large",)]


def test_no_job_passes_a_head_that_has_waited_too_long(make_host: MakeHost) -> None:
    clock = ScriptedClock()
    engine = ScriptedEngine(slots=4, budget=10)
    host = make_host(engine, clock=clock, skip_max_wait_s=30.0)
    submit(host, Task("long", steps=2, size=6))
    engine.wait_in_step()
    large, small = submit(host, Task("large", size=10), Task("small", size=4))
    clock.advance(31)
    engine.open()
    assert answer(large) == ["large:1"]
    assert answer(small) == ["small:1"]
    assert engine.steps == [("long",), ("long",), ("large",), ("small",)]


def test_a_free_slot_is_no_place_while_the_engine_refuses_jobs(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=4, budget=10)
    host = make_host(engine, capacity=2)
    submit(host, Task("long", steps=99, size=10))
    engine.take_steps(1)
    submit(host, Task("w1"))
    engine.take_steps(1)
    engine.take_steps(1)  # by now a pass was refused w1, though three slots are free
    submit(host, Task("w2"))
    with pytest.raises(Overloaded):
        submit(host, Task("w3"))


def test_a_job_that_an_empty_engine_refuses_fails_and_the_next_is_served(
    make_host: MakeHost,
) -> None:
    engine = ScriptedEngine(gated=False)
    engine.refuse = {"never"}
    host = make_host(engine)
    never, good = submit(host, *names("never", "good"))
    assert isinstance(failure(never), StepFailed)
    assert answer(good) == ["good:1"]


def test_a_deadline_that_has_passed_on_arrival_is_refused(make_host: MakeHost) -> None:
    clock = ScriptedClock(100.0)
    host = make_host(ScriptedEngine(), clock=clock)
    with pytest.raises(DeadlineExceeded):
        submit(host, Task("late"), deadline=100.0)
    assert host.jobs.waiting == 0
    assert sample("predictors_admission_rejected_total", host, reason="deadline") == 1


def test_a_deadline_in_the_queue_is_answered_while_the_engine_is_inside_a_step(
    make_host: MakeHost,
) -> None:
    clock = ScriptedClock()
    engine = ScriptedEngine(slots=1)
    host = make_host(engine, clock=clock)
    [running] = busy(host, engine, steps=1)
    [late] = submit(host, Task("late"), deadline=clock.now + 5)
    [patient] = submit(host, Task("patient"), deadline=clock.now + 6)
    clock.advance(5)
    assert isinstance(failure(late), DeadlineExceeded)  # the step is still held
    assert host.jobs.waiting == 1
    assert not running.done
    engine.open()
    assert answer(patient) == ["patient:1"]
    assert engine.steps == [("long0",), ("patient",)]
    assert ("admit", "late") not in engine.calls
    assert sample("predictors_jobs_total", host, reason="deadline") == 1
    assert sample("predictors_queue_duration_seconds_sum", host) == 10.0  # 5 s late, 5 s patient


def test_a_deadline_on_the_real_clock_wakes_the_watch(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=1)
    host = make_host(engine)  # on the real clock
    busy(host, engine)
    [far] = submit(host, Task("far"), deadline=monotonic() + 1000)
    near = submit_in_time(host, Task("near"), 0.02)
    assert isinstance(failure(near), DeadlineExceeded)
    assert monotonic() >= near.deadline  # type: ignore[operator]
    assert engine.steps == []  # the step is still held: the watch thread failed it
    assert not far.done


def submit_in_time(host: EngineHost[Task, str], task: Task, timeout_s: float) -> Job[Task, str]:
    """A job that was accepted before its deadline. A busy machine may need more than one try."""
    while True:
        with suppress(DeadlineExceeded):
            return submit(host, task, deadline=monotonic() + timeout_s)[0]
        timeout_s *= 2


def test_a_job_whose_deadline_passes_during_an_admission_pass_does_not_start(
    make_host: MakeHost,
) -> None:
    clock = ScriptedClock()
    engine = ScriptedEngine(slots=2)
    host = make_host(engine, clock=clock, start=False)
    host.loop.load_and_warm()
    first, second = submit(host, Task("first"), Task("second"), deadline=clock.now + 1)
    admit = engine.admit

    def slow_admit(job: object) -> bool:
        clock.now += 1  # until the second's deadline; no thread is woken
        return admit(job)  # type: ignore[arg-type]

    engine.admit = slow_admit  # type: ignore[method-assign,assignment]
    engine.open()
    host.loop.run_once()
    host.loop.run_once()
    assert ("admit", "second") not in engine.calls
    assert isinstance(failure(second), DeadlineExceeded)
    assert first.done


def test_a_cancelled_job_leaves_the_queue_at_once_while_the_engine_is_inside_a_step(
    make_host: MakeHost,
) -> None:
    engine = ScriptedEngine(slots=1)
    host = make_host(engine, capacity=1)
    busy(host, engine, steps=1)
    [waiting] = submit(host, Task("leaves"))
    with pytest.raises(Overloaded):
        host.check_accepting(1)
    waiting.cancel()
    assert host.jobs.waiting == 0
    assert isinstance(failure(waiting), Cancelled)
    [next_one] = submit(host, Task("next"))  # the place is free, though no step has ended
    engine.open()
    assert answer(next_one) == ["next:1"]
    assert ("admit", "leaves") not in engine.calls
    assert sample("predictors_jobs_total", host, reason="cancelled") == 1


def test_a_job_that_is_cancelled_while_it_is_admitted_gives_the_slot_back(
    make_host: MakeHost,
) -> None:
    engine = ScriptedEngine(slots=1)
    host = make_host(engine, start=False)
    host.loop.load_and_warm()
    leaving, staying = submit(host, *names("leaving", "staying"))
    admit = engine.admit

    def admit_and_cancel(job: object) -> bool:
        is_admitted = admit(job)  # type: ignore[arg-type]
        leaving.cancel()
        return is_admitted

    engine.admit = admit_and_cancel  # type: ignore[method-assign,assignment]
    engine.open()
    host.loop.run_once()
    host.loop.run_once()
    assert isinstance(failure(leaving), Cancelled)
    assert answer(staying) == ["staying:1"]
    assert engine.steps == [("staying",)]
    assert ("evict", "leaving") in engine.calls


def test_a_running_job_that_is_cancelled_frees_its_slot_before_the_next_step(
    make_host: MakeHost,
) -> None:
    engine = ScriptedEngine(slots=2)
    host = make_host(engine)
    leaving, staying = busy(host, engine, steps=3)
    [waiting] = submit(host, Task("waiting"))
    leaving.cancel()
    engine.open()
    assert answer(waiting) == ["waiting:1"]
    assert answer(staying) == staying.work.chunks
    assert isinstance(failure(leaving), Cancelled)
    assert engine.steps[:2] == [("long0", "long1"), ("long1", "waiting")]


def test_a_running_job_past_its_deadline_fails_at_once_and_is_evicted_after_the_step(
    make_host: MakeHost,
) -> None:
    clock = ScriptedClock()
    engine = ScriptedEngine(slots=1)
    host = make_host(engine, clock=clock)
    [late] = submit(host, Task("late", steps=9), deadline=clock.now + 5)
    engine.take_steps(2)
    engine.wait_in_step()
    [waiting] = submit(host, Task("waiting"))
    clock.advance(5)
    assert isinstance(failure(late), DeadlineExceeded)
    assert len(host.jobs.running) == 1  # the step is still held, and so is the slot
    engine.open()
    assert answer(waiting) == ["waiting:1"]
    assert engine.steps == [("late",)] * 3 + [("waiting",)]
    assert engine.calls.count(("evict", "late")) == 1
    assert sample("predictors_jobs_total", host, reason="deadline") == 1


def test_an_idle_engine_is_woken_by_a_cancellation(make_host: MakeHost) -> None:
    looked = Event()

    class IdleEngine(ScriptedEngine):
        """Holds its jobs and never steps them."""

        @property
        def busy(self) -> bool:
            looked.set()
            return False

    engine = IdleEngine(slots=1)
    host = make_host(engine)
    [asleep] = submit(host, Task("asleep"))
    assert looked.wait(PATIENCE_S)  # it has its slot: only the engine thread can take it away
    [waiting] = submit(host, Task("waiting"), request_id="w")
    asleep.cancel()
    assert isinstance(failure(asleep), Cancelled)
    waiting.cancel()
    assert isinstance(failure(waiting), Cancelled)
    assert engine.steps == []


@pytest.mark.parametrize("waiting", [0, 3])
def test_the_oldest_waiting_job_has_an_age(make_host: MakeHost, waiting: int) -> None:
    clock = ScriptedClock()
    engine = ScriptedEngine(slots=1)
    host = make_host(engine, clock=clock)
    busy(host, engine)
    for i in range(waiting):
        submit(host, Task(f"w{i}"))
        clock.advance(2)
    assert sample("predictors_queue_oldest_seconds", host) == 2.0 * waiting


def test_times_and_outcomes_of_a_job_are_recorded(make_host: MakeHost) -> None:
    clock = ScriptedClock(50.0)
    engine = ScriptedEngine(slots=1)
    host = make_host(engine, clock=clock)
    busy(host, engine, steps=1)
    [job] = submit(host, Task("a", steps=2))
    clock.advance(3)
    engine.take_steps(1)
    engine.wait_in_step()
    clock.advance(4)
    engine.take_steps(2)
    assert answer(job) == ["a:1", "a:2"]
    assert (job.submitted_at, job.admitted_at, job.finished_at) == (50.0, 53.0, 57.0)
    wait_idle(host)  # it is counted after it is answered
    assert sample("predictors_jobs_total", host, reason="ok") == 2
    assert sample("predictors_engine_steps_total", host) == 3
    assert sample("predictors_step_duration_seconds_sum", host) == 7.0
    assert sample("predictors_engine_last_step_timestamp_seconds", host) > 0
    assert sample("predictors_requests_running", host) == 0
    assert sample("predictors_requests_waiting", host) == 0


def test_the_retry_after_of_a_full_queue_follows_the_recent_rate(make_host: MakeHost) -> None:
    clock = ScriptedClock()
    engine = ScriptedEngine(slots=1)
    host = make_host(engine, clock=clock, capacity=4)
    for _ in range(20):
        [job] = submit(host, Task("five seconds"))
        engine.wait_in_step()
        clock.advance(5)
        engine.take_steps(1)
        answer(job)
        wait_idle(host)
    busy(host, engine)
    for i in range(4):
        submit(host, Task(f"w{i}"))
    with pytest.raises(Overloaded) as refused:
        submit(host, Task("one too many"))
    assert 20 <= refused.value.retry_after_s <= 25  # four jobs wait, five seconds each
