"""Order, bound, skip window and head age of the admission queue, without threads or engines."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.serving.job import Job
from predictors.serving.queue import MAX_RETRY_S, MIN_RETRY_S, SPREAD, AdmissionQueue, DepartureRate
from predictors.settings import QueueSettings
from tests.fakes import ScriptedClock, Task


def waiting(
    count: int, clock: ScriptedClock | None = None, **settings: float
) -> AdmissionQueue[Task, str]:
    queue: AdmissionQueue[Task, str] = AdmissionQueue(QueueSettings(**settings))  # type: ignore[arg-type]
    for number in range(1, count + 1):
        job = Job(str(number), Task(str(number)), clock=clock or ScriptedClock())
        job.arrival_number = number
        queue.add([job])
    return queue


def offered(
    queue: AdmissionQueue[Task, str], refuse: Iterable[int], *, free_slots: int, now: float = 1000.0
) -> list[int]:
    """Arrival numbers of the jobs that one pass offers when the engine refuses `refuse`."""
    seen = []
    admission = queue.start_pass(free_slots, now)
    for job in admission:
        seen.append(job.arrival_number)
        if job.arrival_number in refuse:
            admission.refuse(job)
        else:
            queue.pop(job.arrival_number)
    queue.end_pass(admission)
    return seen


def test_first_in_is_first_offered() -> None:
    assert offered(waiting(5), [], free_slots=3)[:3] == [1, 2, 3]


def test_a_job_leaves_from_the_middle_and_the_order_stays() -> None:
    queue = waiting(5)
    assert queue.pop(3) is not None
    assert queue.pop(3) is None
    assert 3 not in queue
    assert offered(queue, [], free_slots=5) == [1, 2, 4, 5]


def test_behind_a_head_that_does_not_fit_the_next_few_are_tried() -> None:
    queue = waiting(20, skip_window=4)
    assert offered(queue, [1], free_slots=30) == [1, 2, 3, 4, 5]


def test_the_window_begins_at_the_first_that_does_not_fit() -> None:
    queue = waiting(20, skip_window=2)
    assert offered(queue, [4, 5], free_slots=30) == [1, 2, 3, 4, 5, 6]


def test_without_a_skip_window_no_job_overtakes() -> None:
    assert offered(waiting(5, skip_window=0), [2], free_slots=5) == [1, 2]


def test_no_job_overtakes_a_head_that_has_waited_too_long() -> None:
    queue = waiting(5, skip_max_wait_s=30)
    assert offered(queue, [1], free_slots=5, now=1030.0) == [1, 2, 3, 4, 5]
    queue = waiting(5, skip_max_wait_s=30)
    assert offered(queue, [1], free_slots=5, now=1030.1) == [1]


def test_a_head_that_has_waited_too_long_is_admitted_like_any_other() -> None:
    assert offered(waiting(3, skip_max_wait_s=30), [], free_slots=5, now=9999.0) == [1, 2, 3]


def test_without_a_free_slot_no_job_is_offered() -> None:
    assert offered(waiting(3), [], free_slots=0) == []


def test_a_pass_visits_few_jobs_however_many_wait() -> None:
    assert len(offered(waiting(1000, skip_window=8), range(1000), free_slots=4)) == 9


def test_free_slots_are_places_on_top_of_the_capacity() -> None:
    queue = waiting(3, capacity=5)
    assert queue.free_places(free_slots=0) == 2
    assert queue.free_places(free_slots=4) == 6


def test_free_slots_are_no_places_while_the_engine_refuses_a_job() -> None:
    queue = waiting(3, capacity=5)
    offered(queue, [1, 2, 3], free_slots=4)
    assert queue.free_places(free_slots=4) == 2
    offered(queue, [1], free_slots=4)  # 2 and 3 were admitted, 1 is still refused
    assert queue.free_places(free_slots=2) == 4
    queue.pop(1)  # it leaves: other jobs may fit
    assert queue.free_places(free_slots=2) == 7


def test_clearing_returns_all_jobs_in_order() -> None:
    queue = waiting(4)
    assert [job.arrival_number for job in queue.clear()] == [1, 2, 3, 4]
    assert len(queue) == 0
    assert queue.head is None


def test_before_the_first_departure_it_is_about_a_second() -> None:
    assert MIN_RETRY_S <= DepartureRate().retry_after_s(64) <= MIN_RETRY_S * (1 + SPREAD)


def test_it_is_the_time_the_queue_needs_at_the_recent_rate() -> None:
    rate = DepartureRate()
    for _ in range(20):
        rate.observe(2.0, num_running=4)  # four at a time, two seconds each: two jobs a second
    assert 16.0 <= rate.retry_after_s(32) <= 16.0 * (1 + SPREAD)


def test_it_follows_a_change_of_traffic() -> None:
    rate = DepartureRate()
    rate.observe(0.001, num_running=1)
    for _ in range(20):
        rate.observe(1.0, num_running=1)
    assert rate.retry_after_s(10) == pytest.approx(10, rel=0.3)


def test_it_is_never_more_than_a_minute() -> None:
    rate = DepartureRate()
    rate.observe(600.0, num_running=1)
    assert rate.retry_after_s(64) == MAX_RETRY_S


def test_callers_refused_together_do_not_come_back_together() -> None:
    rate = DepartureRate()
    rate.observe(1.0, num_running=1)
    times = sorted(rate.retry_after_s(20) for _ in range(50))
    gaps = [b - a for a, b in pairwise(times)]
    assert min(gaps) > 0
    assert max(gaps) < 20 * SPREAD / 10  # no hole of more than a tenth of the spread


COSTS = st.floats(1, 1e6)


@given(
    st.floats(1e-7, 1e-2),
    st.lists(st.tuples(COSTS, st.floats(0.7, 1.4)), min_size=1, max_size=40),
    st.lists(COSTS, min_size=1, max_size=64),
)
def test_jobs_that_tell_their_cost_are_estimated_by_it(
    seconds_per_cost: float, finished: list[tuple[float, float]], waiting: list[float]
) -> None:
    rate = DepartureRate()
    for cost, noise in finished:
        rate.observe(cost * seconds_per_cost * noise, num_running=1, cost=cost)
    true_s = sum(waiting) * seconds_per_cost
    found = rate.retry_after_s(sum(waiting))
    assert min(MAX_RETRY_S, max(MIN_RETRY_S, 0.69 * true_s)) <= found
    assert found <= min(MAX_RETRY_S, max(MIN_RETRY_S, 1.41 * true_s) * (1 + SPREAD))


@given(
    st.floats(1, 1e6),
    st.lists(st.floats(0.01, 0.05), min_size=2, max_size=30),
    st.integers(0, 64),
    st.booleans(),
)
def test_one_large_picture_is_forgotten_after_two_small_ones(
    large_s: float, small_s: list[float], waiting: int, has_costs: bool
) -> None:
    rate = DepartureRate()
    rate.observe(large_s, num_running=1, cost=large_s if has_costs else 1.0)
    for seconds in small_s:
        rate.observe(seconds, num_running=1, cost=seconds if has_costs else 1.0)
    cost = waiting * (0.05 if has_costs else 1.0)
    assert rate.retry_after_s(cost) <= max(1.0, 64 * 0.05 * 4) * (1 + SPREAD)


@given(
    st.lists(st.tuples(st.floats(0, 1e9), st.integers(0, 99), st.floats(0, 1e12)), max_size=40),
    st.floats(0, 1e15),
    st.floats(-1e9, 1e9),
)
def test_an_estimate_is_always_from_one_second_to_a_minute(
    finished: list[tuple[float, int, float]], waiting_cost: float, first_s: float
) -> None:
    rate = DepartureRate()
    for seconds, running, cost in finished:
        rate.observe(seconds, running, cost)
    assert MIN_RETRY_S <= rate.retry_after_s(waiting_cost, first_s) <= MAX_RETRY_S


def test_it_is_not_less_than_the_time_until_a_slot_is_free() -> None:
    rate = DepartureRate()
    assert 20.0 <= rate.retry_after_s(1.0, first_s=20.0) <= 20.0 * (1 + SPREAD)


def test_the_queue_sums_the_costs_of_its_jobs() -> None:
    queue = waiting(3)
    assert queue.cost == 3.0
    queue.pop(2)
    queue.pop(2)
    assert queue.cost == 2.0
    queue.clear()
    assert queue.cost == 0.0
