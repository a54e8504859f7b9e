"""Which pictures take part in the next step. Pure: knows no tensor and no device.

Pictures of different shapes can't share a forward pass, and a pass has a largest number of rows.
Whoever has waited longest decides the shape; others of that shape fill the pass, longest wait
first. So among N pictures each one moves at least once in N steps, whatever the mix.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A picture that could take a step."""

    shape: Hashable
    num_rows: int
    last_turn: int
    """The turn it last took part in, or was admitted in: smaller means waiting longer."""


def pick(candidates: Sequence[Candidate], max_rows: int) -> list[int]:
    """Indices of those that step together: one shape, at most `max_rows` rows, at least one.

    Ties go to the earlier candidate. Empty only if there are no candidates.
    """
    order = sorted(range(len(candidates)), key=lambda i: (candidates[i].last_turn, i))
    picked: list[int] = []
    rows = 0
    for i in order:
        candidate = candidates[i]
        fits = rows + candidate.num_rows <= max_rows
        if not picked or (fits and candidate.shape == candidates[picked[0]].shape):
            picked.append(i)
            rows += candidate.num_rows
    return sorted(picked)
