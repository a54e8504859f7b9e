"""Estimates of the time that waiting jobs need, from jobs that finished."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.serving.estimates import (
    ENOUGH_JOBS,
    MAX_KINDS,
    MAX_RETRY_S,
    MIN_RETRY_S,
    SPREAD,
    CostRate,
    Estimates,
)


def wait(rate: CostRate, cost: float) -> float:
    """The Retry-After for jobs of that cost, without other kinds."""
    return Estimates().retry_after_s(cost * rate.seconds_per_cost)


def test_before_the_first_job_is_finished_it_is_about_a_second() -> None:
    assert MIN_RETRY_S <= wait(CostRate(), 64) <= MIN_RETRY_S * (1 + SPREAD)


def test_it_is_the_time_the_queue_needs_at_the_recent_rate() -> None:
    rate = CostRate()
    for _ in range(20):
        rate.observe(0.5)  # four at a time, two seconds each: two jobs a second
    assert 16.0 <= wait(rate, 32) <= 16.0 * (1 + SPREAD)


def test_it_follows_a_change_of_traffic() -> None:
    rate = CostRate()
    rate.observe(0.001)
    for _ in range(20):
        rate.observe(1.0)
    assert wait(rate, 10) == pytest.approx(10, rel=0.3)


def test_it_is_never_more_than_a_minute() -> None:
    rate = CostRate()
    rate.observe(600.0)
    assert wait(rate, 64) == MAX_RETRY_S


def test_callers_refused_together_do_not_come_back_together() -> None:
    estimates = Estimates()
    times = sorted(estimates.retry_after_s(20) for _ in range(50))
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
    rate = CostRate()
    for cost, noise in finished:
        rate.observe(cost * seconds_per_cost * noise, cost)
    true_s = sum(waiting) * seconds_per_cost
    assert 0.69 * true_s <= sum(waiting) * rate.seconds_per_cost <= 1.41 * true_s


@given(
    st.floats(1, 1e6),
    st.lists(st.floats(0.01, 0.05), min_size=2, max_size=30),
    st.integers(0, 64),
    st.booleans(),
)
def test_one_large_picture_is_forgotten_after_two_small_ones(
    large_s: float, small_s: list[float], waiting: int, has_costs: bool
) -> None:
    rate = CostRate()
    rate.observe(large_s, large_s if has_costs else 1.0)
    for seconds in small_s:
        rate.observe(seconds, seconds if has_costs else 1.0)
    cost = waiting * (0.05 if has_costs else 1.0)
    assert wait(rate, cost) <= max(1.0, 64 * 0.05 * 4) * (1 + SPREAD)


@given(
    st.lists(st.tuples(st.floats(0, 1e9), st.booleans(), st.floats(0, 1e12)), max_size=40),
    st.floats(0, 1e15),
)
def test_a_retry_after_is_always_from_one_second_to_a_minute(
    finished: list[tuple[float, bool, float]], waiting_cost: float
) -> None:
    rate = CostRate()
    for seconds, is_full, cost in finished:
        rate.observe(seconds, cost, is_full=is_full)
    assert MIN_RETRY_S <= wait(rate, waiting_cost) <= MAX_RETRY_S


def test_jobs_of_a_full_engine_replace_and_outweigh_those_of_an_idle_one() -> None:
    rate = CostRate()
    rate.observe(8.0, is_full=False)  # alone in its steps
    assert rate.seconds_per_cost == 8.0
    rate.observe(1.0)  # a step's time among eight
    assert rate.seconds_per_cost == 1.0
    rate.observe(8.0, is_full=False)
    assert rate.seconds_per_cost == 1.0
    assert rate.num_full == 1


def observed(estimates: Estimates, seconds: float, kind: str, jobs: int = 1) -> None:
    for _ in range(jobs):
        estimates.observe(seconds, 1.0, kind, is_full=True, now=0.0)


def test_kinds_of_work_have_rates_of_their_own() -> None:
    estimates = Estimates()
    observed(estimates, 4.0, "lossless", jobs=10)
    observed(estimates, 1.0, "turbo", jobs=10)
    assert estimates.seconds({"lossless": 2.0, "turbo": 3.0}) == pytest.approx(11.0)
    assert 1.0 < estimates.seconds({"never seen": 1.0}) < 4.0


def test_the_number_of_kinds_is_bounded() -> None:
    estimates = Estimates()
    for i in range(1000):
        observed(estimates, 1.0, f"kind {i}")
    assert len(estimates._kinds) == MAX_KINDS + 1  # the others share one
    assert estimates.mean_s == pytest.approx(1.0)


def test_estimates_are_sure_after_enough_jobs_of_the_kind() -> None:
    estimates = Estimates()
    observed(estimates, 4.0, "a", jobs=ENOUGH_JOBS - 1)
    assert not estimates.is_sure
    observed(estimates, 4.0, "b")
    assert estimates.is_sure
    assert estimates.sure_seconds({"a": 1.0, "b": 1.0}) == 0.0
    observed(estimates, 4.0, "a")
    assert estimates.sure_seconds({"a": 1.0, "b": 1.0}) == pytest.approx(4.0)
