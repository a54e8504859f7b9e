from __future__ import annotations

from benchmarks.structured_output.__main__ import measure


def test_two_hundred_answers_at_a_high_temperature_are_valid() -> None:
    found = measure(200)
    assert (found["answers"], found["wrong"]) == (200, 0)
    assert found["valid"] >= 198
