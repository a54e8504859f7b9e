"""Who steps: one shape, no more rows than fit, the longest wait first, and nobody starves."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from predictors.flux.scheduling import Candidate, pick

CANDIDATES = st.lists(
    st.builds(Candidate, st.sampled_from("abc"), st.integers(1, 2), st.integers(0, 9)), max_size=12
)


def test_nobody_is_picked_from_nobody() -> None:
    assert pick([], 4) == []


@given(CANDIDATES, st.integers(2, 8))
def test_a_pass_has_one_shape_fits_and_serves_the_longest_wait(
    candidates: list[Candidate], max_rows: int
) -> None:
    picked = pick(candidates, max_rows)
    assert bool(picked) == bool(candidates)
    assert len(set(picked)) == len(picked)
    if picked:
        chosen = [candidates[i] for i in picked]
        assert len({c.shape for c in chosen}) == 1
        assert sum(c.num_rows for c in chosen) <= max_rows
        oldest = min(c.last_turn for c in candidates)
        assert any(c.last_turn == oldest for c in chosen)


@given(CANDIDATES, st.integers(2, 8))
def test_nobody_of_the_shape_is_left_out_while_there_is_room(
    candidates: list[Candidate], max_rows: int
) -> None:
    picked = pick(candidates, max_rows)
    if picked:
        shape = candidates[picked[0]].shape
        room = max_rows - sum(candidates[i].num_rows for i in picked)
        left = [c for i, c in enumerate(candidates) if i not in picked and c.shape == shape]
        assert all(c.num_rows > room for c in left)


@given(CANDIDATES.filter(len), st.integers(2, 8))
def test_each_of_n_moves_within_n_turns(candidates: list[Candidate], max_rows: int) -> None:
    turn = max(c.last_turn for c in candidates)
    moved: set[int] = set()
    for _ in candidates:
        turn += 1
        for i in pick(candidates, max_rows):
            candidates[i] = replace(candidates[i], last_turn=turn)
            moved.add(i)
    assert moved == set(range(len(candidates)))
