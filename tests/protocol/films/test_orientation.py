"""Films that are turned and mirrored are seen as their cameras saw them."""

from __future__ import annotations

import numpy as np
import pytest

from predictors.protocol.films.decode import probe_frames
from predictors.settings import FilmLimits
from tests.protocol.films.test_decode import read, turned

# what is seen of the stored rows and columns, by the matrix (ISO/IEC 14496-12, 6.2.2)
TURNS = {
    "not": ((1, 0, 0, 1), lambda stored: stored),
    "by a matrix of zeros": ((0, 0, 0, 0), lambda stored: stored),
    "twice its size": ((2, 0, 0, 2), lambda stored: stored),
    "mirrored": ((-1, 0, 0, 1), lambda stored: stored[:, ::-1]),
    "upside down in a mirror": ((1, 0, 0, -1), lambda stored: stored[::-1]),
    "by 180 degrees": ((-1, 0, 0, -1), lambda stored: stored[::-1, ::-1]),
    "with the clock": ((0, 1, -1, 0), lambda stored: np.rot90(stored, -1)),
    "against the clock": ((0, -1, 1, 0), lambda stored: np.rot90(stored)),
    "across the diagonal": ((0, 1, 1, 0), lambda stored: stored.swapaxes(0, 1)),
    "across the other diagonal": ((0, -1, -1, 0), lambda stored: np.rot90(stored[:, ::-1], -1)),
}


@pytest.mark.parametrize(("matrix", "as_seen"), TURNS.values(), ids=TURNS)
def test_a_film_is_seen_as_its_matrix_tells(matrix, as_seen) -> None:  # type: ignore[no-untyped-def]
    raw = turned(*matrix)
    (stored,), (found,) = read(turned(1, 0, 0, 1), [3]), read(raw, [3])
    facts = probe_frames(raw, FilmLimits())
    assert (facts.height, facts.width) == found.shape[:2]
    seen = as_seen(stored)
    assert seen.shape == found.shape
    # two runs of the encoder may differ
    assert np.abs(found.astype(int) - seen).mean() < 3
