"""Seeds of a request's rows."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.errors import InvalidRequest
from predictors.protocol.seeds import (
    BLOCK,
    DRAWN,
    MAX_SEED,
    check_seed,
    draw_number,
    row_seeds,
)


@given(st.integers(0, MAX_SEED), st.integers(1, 64))
def test_rows_count_up_from_the_seed_or_the_request_is_refused(seed: int, rows: int) -> None:
    if seed + rows - 1 <= MAX_SEED:
        assert row_seeds(seed, rows) == list(range(seed, seed + rows))
    else:
        with pytest.raises(InvalidRequest, match="passes the largest seed"):
            row_seeds(seed, rows)


def test_seeds_never_wrap_around() -> None:
    assert row_seeds(MAX_SEED - 3, 4)[-1] == MAX_SEED
    with pytest.raises(InvalidRequest):
        row_seeds(MAX_SEED - 3, 5)


@pytest.mark.parametrize("seed", [None, DRAWN])
@pytest.mark.parametrize("rows", [1, 3, 2**16])
def test_without_a_seed_the_first_is_drawn_and_the_others_count_up(
    seed: int | None, rows: int
) -> None:
    drawn = [row_seeds(seed, rows) for _ in range(4)]
    assert len({seeds[0] for seeds in drawn}) == 4
    for seeds in drawn:
        assert seeds == list(range(seeds[0], seeds[0] + rows))
        assert 0 <= seeds[0] <= seeds[-1] <= MAX_SEED


@pytest.mark.parametrize("seed", [-2, MAX_SEED + 1, -(10**400), 10**400])
def test_a_seed_out_of_range_is_refused_with_both_numbers(seed: int) -> None:
    with pytest.raises(InvalidRequest, match=f"from 0 to {MAX_SEED}, or -1") as refused:
        check_seed(seed)
    assert refused.value.param == "seed"
    assert len(refused.value.message) < 120


def test_numbers_are_drawn_from_the_whole_range_and_none_comes_twice() -> None:
    drawn = [draw_number() for _ in range(3 * BLOCK)]
    assert len(set(drawn)) == len(drawn)
    assert all(0 <= each < 2**64 for each in drawn)
    assert max(drawn) > 2**63 > min(drawn)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_draws_numbers_of_its_own() -> None:
    draw_number()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, draw_number().to_bytes(8, "big"))
        os._exit(0)
    os.waitpid(child, 0)
    theirs = int.from_bytes(os.read(read, 8), "big")
    os.close(read)
    os.close(write)
    assert theirs not in {draw_number() for _ in range(BLOCK)}


def test_a_drawn_seed_leaves_room_for_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter([MAX_SEED, MAX_SEED - 3])
    monkeypatch.setattr("predictors.protocol.seeds.draw_number", lambda: next(numbers))
    assert row_seeds(None, 4) == list(range(MAX_SEED - 3, MAX_SEED + 1))
