"""Chooses the pictures of the next denoise step, and how many rows share a pass.

Pictures of different shapes can't share a pass. The one with the least work left goes first, which
gives the shortest mean time to a picture. A picture that has waited in its slot for longer than the
age limit goes before all others, the longest wait first; so among N slots its remaining steps take
at most about N times as long as alone, whatever keeps arriving.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

S = TypeVar("S", bound=Hashable)

LEAST_GAIN = 0.05  # a smaller gain is lost when one picture of a pass leaves early or arrives late


@dataclass(frozen=True, slots=True)
class Candidate:
    """A picture that could take a step."""

    shape: Hashable
    """Pictures of equal shape can share a pass."""
    num_rows: int
    remaining: float
    """Work left, in any one unit: model calls times tokens."""
    waited_s: float
    """Seconds in its slot without taking a step."""


def pick_group(
    candidates: Sequence[Candidate], width_of: Callable[[Any], int], age_limit_s: float
) -> list[int]:
    """Indices of those that step together, ascending: one shape, at least one picture, and no more
    rows than `width_of(shape)` unless the first alone has more.

    `candidates` are in order of admission, which also decides ties. Empty only if there are none.
    """

    def precedence(i: int) -> tuple[float, float, int]:
        waited = candidates[i].waited_s
        return (-waited if waited > age_limit_s else 0.0), candidates[i].remaining, i

    picked: list[int] = []
    rows = 0
    for i in sorted(range(len(candidates)), key=precedence):
        one = candidates[i]
        if not picked:
            shape, width = one.shape, width_of(one.shape)
        elif one.shape != shape or rows + one.num_rows > width:
            continue
        picked.append(i)
        rows += one.num_rows
    return sorted(picked)


def best_widths(
    seconds: Mapping[tuple[S, int], float], least_gain: float = LEAST_GAIN
) -> dict[S, int]:
    """Rows of each shape that should share a pass, from the seconds that one of (shape, rows)
    takes: the narrowest that no wider one beats by `least_gain` in seconds per row."""
    measured: defaultdict[S, list[tuple[int, float]]] = defaultdict(list)
    for (shape, rows), took in seconds.items():
        measured[shape].append((rows, took / rows))
    return {shape: _best_width(sorted(per_row), least_gain) for shape, per_row in measured.items()}


def _best_width(per_row: Sequence[tuple[int, float]], least_gain: float) -> int:
    best, least = per_row[0]
    for rows, took in per_row[1:]:
        if took <= least * (1 - least_gain):
            best, least = rows, took
    return best
