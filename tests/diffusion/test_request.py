"""Seeds of a request's rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.diffusion.request import MAX_SEED, row_seeds
from predictors.errors import InvalidRequest


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
    assert row_seeds(None, 3) == [None, None, None]
