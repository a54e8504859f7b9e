"""The Retry-After of a full queue follows the rate of departures, within bounds, spread out."""

from __future__ import annotations

from itertools import pairwise

import pytest

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
