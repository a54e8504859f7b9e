"""Estimates of the time that waiting jobs need, from jobs that finished."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.serving.departure_rate import MAX_RETRY_S, MIN_RETRY_S, SPREAD, DepartureRate


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
