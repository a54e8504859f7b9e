"""The bound on one caller's bodies that are still arriving."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.errors import QuotaExceeded, ServingError
from predictors.protocol.pending_bodies import PendingBodies


class Body:
    def __init__(self) -> None:
        self.reasons: list[ServingError] = []

    def stop_reading(self, reason: ServingError) -> None:
        self.reasons.append(reason)


def test_a_caller_has_its_bound_and_others_have_theirs() -> None:
    pending = PendingBodies()
    pending.most_of_one = 2
    first, second = Body(), Body()
    pending.add(first, "a")
    pending.add(second, "a")
    with pytest.raises(QuotaExceeded, match="2 requests of this caller are open"):
        pending.add(Body(), "a")
    pending.add(Body(), "b")
    pending.remove(first)
    pending.add(Body(), "a")
    assert len(pending) == 3


def test_bodies_may_leave_while_they_are_walked() -> None:
    pending = PendingBodies()
    for _ in range(3):
        pending.add(Body(), "a")
    for body in pending:
        pending.remove(body)
    assert list(pending) == []


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
def test_counts_are_those_of_the_bodies(steps: list[tuple[str, bool]]) -> None:
    pending, held = PendingBodies(), []
    pending.most_of_one = 4
    for caller, comes in steps:
        count = sum(name == caller for _, name in held)
        if comes and count < 4:
            held.append((Body(), caller))
            pending.add(*held[-1])
        elif comes:
            with pytest.raises(QuotaExceeded):
                pending.add(Body(), caller)
        elif held:
            pending.remove(held.pop(0)[0])
    assert len(pending) == len(held)
    assert pending._counts == Counter(name for _, name in held)
