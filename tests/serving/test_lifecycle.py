"""Legal transitions succeed, all others are refused, and waiting threads are woken."""

from __future__ import annotations

import threading
from itertools import pairwise, product

import pytest

from predictors.serving.lifecycle import Lifecycle, State
from tests.fakes import PATIENCE_S

N, L, W, R, D, F, S = (
    State.NEW,
    State.LOADING,
    State.WARMING,
    State.READY,
    State.DRAINING,
    State.FAILED,
    State.STOPPED,
)
WAYS = {N: [], L: [L], W: [L, W], R: [L, W, R], D: [L, D], F: [L, F], S: [S]}  # from NEW to each
LEGAL = {
    (N, L), (N, S), (L, W), (L, D), (L, F), (L, S), (W, R), (W, D), (W, F), (W, S),
    (R, D), (R, F), (R, S), (D, F), (D, S),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new"), list(product(State, State)))
def test_only_legal_transitions_succeed(old: State, new: State) -> None:
    seen: list[State] = []
    life = Lifecycle(seen.append)
    for state in WAYS[old]:
        assert life.move(state)
    before = list(seen)
    assert life.move(new) is ((old, new) in LEGAL)
    assert life.state is (new if (old, new) in LEGAL else old)
    assert seen == before + ([new] if (old, new) in LEGAL else [])


def test_a_whole_life_without_a_failure() -> None:
    life = Lifecycle()
    assert all(life.move(new) for _, new in pairwise([N, L, W, R, D, S]))


def test_waiting_returns_the_state_that_was_reached() -> None:
    life = Lifecycle()
    found: list[State | None] = []
    waiter = threading.Thread(
        target=lambda: found.append(life.wait_for(R, F, timeout_s=PATIENCE_S))
    )
    waiter.start()
    life.move(L)
    life.move(F)
    waiter.join(PATIENCE_S)
    assert found == [F]


def test_waiting_for_the_present_state_returns_at_once() -> None:
    assert Lifecycle().wait_for(N) is N


def test_waiting_longer_than_the_timeout_returns_none() -> None:
    assert Lifecycle().wait_for(R, timeout_s=0) is None
