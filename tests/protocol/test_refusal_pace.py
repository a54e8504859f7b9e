"""Refusals beyond a number per second are late, of that caller alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.protocol import refusal_pace
from predictors.protocol.refusal_pace import DELAY_S, RefusalPace


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_seconds_refusals_come_at_once_and_later_ones_late() -> None:
    clock = Clock()
    pace = RefusalPace(3.0, clock)
    assert [pace.delay_s("a") for _ in range(5)] == [0.0, 0.0, 0.0, DELAY_S, DELAY_S]
    assert pace.delay_s("b") == 0.0
    clock.now += 0.5
    assert [pace.delay_s("a") for _ in range(2)] == [0.0, DELAY_S]


def test_a_rate_of_0_delays_none() -> None:
    pace = RefusalPace(0.0, Clock())
    assert {pace.delay_s("a") for _ in range(1000)} == {0.0}


@given(
    st.floats(0.5, 50.0),
    st.lists(st.floats(0.0, 0.5), max_size=200),
)
def test_no_caller_gets_more_at_once_than_a_second_holds_and_its_rate(
    per_s: float, gaps: list[float]
) -> None:
    clock = Clock()
    pace = RefusalPace(per_s, clock)
    began, at_once = clock.now, 0
    for gap in gaps:
        clock.now += gap
        at_once += pace.delay_s("a") == 0.0
    assert at_once <= max(1.0, per_s) + (clock.now - began) * per_s + 1e-6


def test_callers_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusal_pace, "MOST_CALLERS", 10)
    pace = RefusalPace(1.0, Clock())
    for i in range(1000):
        pace.delay_s(f"{i}")
    assert len(pace._levels) == 10
