"""A call that its caller ends at its deadline is counted as late, not as left: the caller's clock
runs out a little before the server's."""

from __future__ import annotations

import pytest

from predictors.protocol.v2.grpc import _is_over


@pytest.mark.parametrize(
    ("remaining", "given", "is_over"),
    [
        (None, None, False),  # it has no deadline
        (0.0, 3.0, True),
        (-1.0, 3.0, True),
        (0.04, 0.3, True),
        (0.06, 0.3, False),
        (0.9, 60.0, True),
        (1.3, 60.0, False),
        (59.0, 60.0, False),
    ],
)
def test_the_last_part_of_a_calls_time_counts_as_its_deadline(
    remaining: float | None, given: float | None, is_over: bool
) -> None:
    assert _is_over(remaining, given) is is_over
