"""Admission by cost: engine seconds that may wait, deadlines that can't be met, and Retry-After by
the caller's own share.
"""

from __future__ import annotations

import pytest

from predictors.errors import DeadlineExceeded, Overloaded
from predictors.serving.accounts import Caller
from predictors.serving.admission import SAFETY, TRUSTED_S, costs_of
from predictors.serving.estimates import ENOUGH_JOBS
from tests.fakes import Task
from tests.serving.conftest import sample, submit
from tests.serving.test_fairness import A, B, Bench


def measured(step_s: float = 2.0, slots: int = 1, **settings: float) -> Bench:
    """An idle engine that has finished enough jobs of `step_s` engine seconds each."""
    bench = Bench(slots, **settings)
    for _ in range(ENOUGH_JOBS):
        for _ in range(slots):
            bench.submit(A, step_s=step_s)
        bench.run()
    assert bench.host.jobs.open_jobs == 0
    return bench


def in_time(bench: Bench, seconds: float) -> float:
    return bench.clock.now + seconds


# -- deadlines -------------------------------------------------------------------------------------


def test_a_request_that_cannot_meet_its_deadline_is_refused_before_it_is_prepared() -> None:
    bench = measured()
    bench.submit(A, jobs=6, step_s=2.0)
    bench.run()
    with pytest.raises(DeadlineExceeded, match="needs about 12 s, 10 s of them to wait") as refused:
        bench.host.reserve(1, A, {"": 1.0}, in_time(bench, 5.0))
    assert "its deadline is in 5 s" in refused.value.message
    assert sample("predictors_admission_rejected_total", bench.host, reason="deadline") == 1
    assert bench.host.jobs.describe()["queued"] == 5
    with pytest.raises(DeadlineExceeded):
        bench.host.check_accepting(1, A, deadline=in_time(bench, 5.0))
    with pytest.raises(DeadlineExceeded):
        submit(bench.host, Task("late"), caller=A, deadline=in_time(bench, 5.0))


def test_what_a_wrong_estimate_might_allow_is_accepted() -> None:
    bench = measured()
    bench.submit(A, jobs=6, step_s=2.0)
    bench.run()
    needs_s = 12.0
    bench.host.reserve(1, A, {"": 1.0}, in_time(bench, needs_s / SAFETY + 0.01))
    bench.host.release(1, A)
    with pytest.raises(DeadlineExceeded):
        bench.host.reserve(1, A, {"": 1.0}, in_time(bench, needs_s / SAFETY - 0.01))


def test_before_enough_jobs_were_measured_no_estimate_refuses() -> None:
    bench = Bench(slots=1)
    bench.submit(A, jobs=ENOUGH_JOBS + 5)
    bench.run(ENOUGH_JOBS - 1)
    bench.host.check_accepting(1, A, deadline=in_time(bench, 0.1))
    bench.run(1)
    with pytest.raises(DeadlineExceeded):
        bench.host.check_accepting(1, A, deadline=in_time(bench, 0.1))


def test_an_idle_engine_refuses_for_the_requests_own_time_only() -> None:
    bench = measured(step_s=2.0)
    bench.host.check_accepting(1, B, deadline=in_time(bench, 0.1))
    bench.host.check_accepting(1, B, {"": 0.1}, in_time(bench, 1.0))
    with pytest.raises(DeadlineExceeded, match="needs about 20 s, 0 s of them to wait"):
        bench.host.check_accepting(1, B, {"": 10.0}, in_time(bench, 5.0))


def test_a_request_is_told_to_try_later_only_if_that_helps() -> None:
    bench = measured(step_s=2.0)
    bench.submit(A, jobs=9, step_s=2.0)
    bench.run()
    with pytest.raises(DeadlineExceeded, match=r"in 5 s; .* more time, or try later$"):
        bench.host.check_accepting(1, A, {"": 1.0}, in_time(bench, 5.0))
    with pytest.raises(DeadlineExceeded, match=r"in 5 s; ask for less or allow more time$"):
        bench.host.check_accepting(1, A, {"": 10.0}, in_time(bench, 5.0))


def test_an_idle_engine_is_tried_again_in_spite_of_old_estimates() -> None:
    bench = measured()
    bench.clock.now += TRUSTED_S + 1
    bench.host.check_accepting(1, B, {"": 10.0}, in_time(bench, 5.0))


def test_cost_of_a_kind_that_was_not_measured_refuses_nothing() -> None:
    bench = measured()
    bench.host.check_accepting(1, B, {"another": 1e9}, in_time(bench, 5.0))


def test_another_callers_jobs_delay_by_its_share_only() -> None:
    bench = measured(step_s=1.0)
    bench.submit(A, jobs=50, step_s=1.0)
    bench.run()
    # a waits for its own 49, b shares with a: twice its own second
    bench.host.check_accepting(1, B, {"": 1.0}, in_time(bench, 2.0))
    with pytest.raises(DeadlineExceeded):
        bench.host.check_accepting(1, A, {"": 1.0}, in_time(bench, 20.0))


def test_a_high_priority_does_not_wait_for_the_callers_other_jobs() -> None:
    bench = measured(step_s=1.0)
    bench.submit(A, jobs=50, step_s=1.0)
    bench.run()
    bench.host.check_accepting(1, Caller("a", priority=1), {"": 1.0}, in_time(bench, 2.0))


def test_rows_do_not_wait_for_themselves_after_they_were_prepared() -> None:
    bench = measured(step_s=2.0)
    bench.submit(A)
    bench.run()
    deadline = in_time(bench, 8.5)
    bench.host.reserve(6, A, {}, deadline)
    tasks = [Task(f"row{i}", step_s=2.0) for i in range(6)]
    jobs = bench.host.submit(tasks, request_id="r", deadline=deadline, caller=A, is_reserved=True)
    assert len(jobs) == 6


def test_costs_are_summed_by_kind() -> None:
    class Row:
        def __init__(self, cost: float, cost_kind: str = "") -> None:
            self.cost = cost
            self.cost_kind = cost_kind

    assert costs_of([Row(1.0), Row(2.0, "turbo"), Row(4.0, "turbo"), object()]) == {
        "": 1.0,
        "turbo": 6.0,
    }


# -- engine seconds that may wait ------------------------------------------------------------------


def test_the_queue_is_bounded_in_engine_seconds() -> None:
    bench = measured(step_s=2.0, capacity_s=10.0)
    bench.submit(A, jobs=6, step_s=2.0)
    bench.run()  # one runs and five wait: ten seconds
    with pytest.raises(Overloaded, match=r"about 10 s waits, 10 s of it this .* and 2 s more"):
        bench.submit(A)
    assert sample("predictors_admission_rejected_total", bench.host, reason="queue_full") == 1
    bench.run()
    bench.submit(A)


def test_beside_another_a_caller_may_have_half_of_the_seconds_wait() -> None:
    bench = measured(step_s=2.0, capacity_s=20.0)
    bench.submit(A, jobs=11, step_s=2.0)
    bench.run()
    bench.submit(B, jobs=5, step_s=2.0)
    with pytest.raises(Overloaded):
        bench.submit(B)
    with pytest.raises(Overloaded):
        bench.submit(A)
    assert bench.host.jobs.waiting_s() == pytest.approx(30.0)


def test_work_that_would_wait_alone_is_not_refused_for_its_seconds() -> None:
    bench = measured(step_s=2.0, capacity_s=1.0)
    bench.submit(A, jobs=4)
    with pytest.raises(Overloaded):
        bench.submit(A)


def test_without_the_setting_seconds_are_not_bounded() -> None:
    bench = measured(step_s=100.0)
    bench.submit(A, jobs=400, step_s=100.0)
    assert bench.host.jobs.waiting_s() == pytest.approx(40000.0)
    assert sample("predictors_queue_work_seconds", bench.host) == pytest.approx(40000.0)
    assert sample("predictors_callers", bench.host) == 1


# -- Retry-After -----------------------------------------------------------------------------------


def retry_after_s(bench: Bench, caller: Caller, rows: int) -> float:
    with pytest.raises(Overloaded) as refused:
        bench.host.check_accepting(rows, caller)
    return refused.value.retry_after_s


def test_the_retry_after_is_that_of_the_callers_own_jobs_under_sharing() -> None:
    bench = measured(step_s=1.0, capacity=32)
    bench.submit(A, jobs=32, step_s=1.0)
    bench.run()
    bench.submit(B, jobs=4, step_s=1.0)
    assert 31 <= retry_after_s(bench, A, 1) <= 35 * 1.25
    # four seconds of its own, of which it gets one in two
    assert 8 <= retry_after_s(bench, B, 20) <= 8 * 1.25


def test_the_retry_after_is_not_less_than_the_time_until_a_slot_is_free() -> None:
    bench = measured(step_s=20.0, capacity=1)
    bench.submit(A, steps=2, step_s=8.0)
    bench.run()
    bench.submit(A)
    assert 12 <= retry_after_s(bench, B, 1) <= 12 * 1.25  # twenty expected, eight charged
