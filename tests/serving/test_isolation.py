"""Finding who makes a step fail: everybody else advances exactly once, whoever the culprits are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.serving.engine import StickyDeviceError
from predictors.serving.isolation import Isolation, is_out_of_memory
from tests.fakes import OutOfMemoryError


class Stepper:
    """An all-or-nothing step: counts who advanced, raises for culprits and for too many at once."""

    def __init__(self, culprits: set[int] = frozenset(), widest: int = 10**6) -> None:  # type: ignore[assignment]
        self.culprits = culprits
        self.widest = widest
        self.advanced: Counter[int] = Counter()
        self.widths: list[int] = []
        self.splits = 0
        self.isolation: Isolation[int] = Isolation(self.attempt, self.split)

    def split(self, jobs: int, is_oom: bool) -> None:
        assert jobs > 1
        assert is_oom == (jobs > self.widest)
        self.splits += 1

    def attempt(self, jobs: Sequence[int]) -> BaseException | None:
        self.widths.append(len(jobs))
        if len(jobs) > self.widest:
            return OutOfMemoryError("too wide")
        if self.culprits & set(jobs):
            return ValueError("poisoned")
        self.advanced.update(jobs)
        return None


@given(st.integers(1, 40), st.sets(st.integers(0, 39)), st.integers(1, 64))
def test_exactly_the_culprits_fail_and_all_others_advance_once(
    count: int, culprits: set[int], widest: int
) -> None:
    stepper = Stepper(culprits, widest)
    jobs = list(range(count))
    failed = stepper.isolation.step(jobs)
    assert set(failed) == culprits & set(jobs)
    assert stepper.advanced == Counter(set(jobs) - culprits)
    assert len(stepper.widths) <= 2 * count - 1


def test_one_of_eight_is_found_in_three_halvings() -> None:
    stepper = Stepper({5})
    assert set(stepper.isolation.step(range(8))) == {5}
    assert stepper.widths == [8, 4, 4, 2, 1, 1, 2]
    assert stepper.splits == 3


def test_a_step_that_is_well_is_taken_once_and_not_split() -> None:
    stepper = Stepper()
    assert stepper.isolation.step(range(8)) == {}
    assert stepper.widths == [8]
    assert stepper.splits == 0


def test_after_running_out_of_memory_it_stays_narrow_until_somebody_leaves() -> None:
    stepper = Stepper(widest=3)
    stepper.isolation.step(range(8))
    stepper.widths.clear()
    stepper.isolation.step(range(8))
    assert stepper.widths == [2, 2, 2, 2]
    stepper.isolation.reset()
    stepper.widest = 100
    stepper.widths.clear()
    stepper.isolation.step(range(8))
    assert stepper.widths == [8]


def test_a_job_that_is_too_large_alone_does_not_make_the_others_narrow() -> None:
    giant = 3

    def attempt(jobs: Sequence[int]) -> BaseException | None:
        widths.append(len(jobs))
        return OutOfMemoryError("giant") if giant in jobs else None

    widths: list[int] = []
    isolation: Isolation[int] = Isolation(attempt, lambda jobs, is_oom: None)
    assert set(isolation.step(range(8))) == {giant}
    widths.clear()
    assert isolation.step([0, 1, 2, 4, 5, 6, 7]) == {}
    assert widths == [7]


def test_a_lost_device_is_raised_at_once() -> None:
    tries = []

    def attempt(jobs: Sequence[int]) -> BaseException | None:
        tries.append(jobs)
        return StickyDeviceError("illegal address")

    with pytest.raises(StickyDeviceError):
        Isolation(attempt, lambda jobs, is_oom: None).step([1, 2, 3, 4])
    assert len(tries) == 1


def test_out_of_memory_is_known_by_name_even_of_a_subclass() -> None:
    class Other(OutOfMemoryError):
        pass

    assert is_out_of_memory(Other())
    assert not is_out_of_memory(MemoryError())
