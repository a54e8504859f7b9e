"""The Retry-After of a full queue follows how fast jobs have been leaving, within bounds, spread
out.
"""

from __future__ import annotations

from itertools import pairwise

import pytest

from predictors.serving.pace import MAX_RETRY_S, MIN_RETRY_S, SPREAD, Pace


def test_before_anything_is_known_it_is_about_a_second() -> None:
    assert MIN_RETRY_S <= Pace().retry_after_s(64) <= MIN_RETRY_S * (1 + SPREAD)


def test_it_is_the_time_the_queue_needs_at_the_recent_pace() -> None:
    pace = Pace()
    for _ in range(20):
        pace.note(2.0, sharing=4)  # four at a time, two seconds each: two jobs a second
    assert 16.0 <= pace.retry_after_s(32) <= 16.0 * (1 + SPREAD)


def test_it_follows_a_change_of_traffic() -> None:
    pace = Pace()
    pace.note(0.001, sharing=1)
    for _ in range(20):
        pace.note(1.0, sharing=1)
    assert pace.retry_after_s(10) == pytest.approx(10, rel=0.3)


def test_no_client_is_told_to_stay_away_for_more_than_a_minute() -> None:
    pace = Pace()
    pace.note(600.0, sharing=1)
    assert pace.retry_after_s(64) == MAX_RETRY_S


def test_those_refused_together_do_not_come_back_together() -> None:
    pace = Pace()
    pace.note(1.0, sharing=1)
    times = sorted(pace.retry_after_s(20) for _ in range(50))
    gaps = [b - a for a, b in pairwise(times)]
    assert min(gaps) > 0
    assert max(gaps) < 20 * SPREAD / 10  # no hole of more than a tenth of the spread
