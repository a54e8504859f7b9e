"""Which pictures take part in the next step, and how many share one. Pure: knows no tensor and no
device.

Pictures of different shapes can't share a forward pass. Whoever has the least left to do goes
first, which makes the mean time to a picture the shortest there is; so that nobody starves, whoever
has stood still in its slot for longer than the age limit in all goes before that, longest first.
From then on it takes turns only with others that have waited as long: among N slots its remaining
steps take at most about N times as long as alone, whatever keeps arriving.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

S = TypeVar("S", bound=Hashable)

LEAST_GAIN = 0.05  # less is lost again when one of the pass leaves early or arrives late


@dataclass(frozen=True, slots=True)
class Pending:
    """A picture that could take a step."""

    shape: Hashable
    """Equal to share a pass."""
    num_rows: int
    remaining: float
    """What is left to do, in any one unit: model calls times tokens."""
    waited_s: float
    """Seconds since it got its slot in which it did not step."""


def choose(
    pending: Sequence[Pending], width_of: Callable[[Any], int], age_limit_s: float
) -> list[int]:
    """Indices of those that step together, ascending: one shape, at least one picture, and no more
    rows than `width_of(shape)` unless the first alone has more.

    `pending` is in order of admission, which also settles ties. Empty only if it is.
    """

    def turn(i: int) -> tuple[float, float, int]:
        waited = pending[i].waited_s
        return (-waited if waited > age_limit_s else 0.0), pending[i].remaining, i

    order = sorted(range(len(pending)), key=turn)
    picked: list[int] = []
    rows = 0
    for i in order:
        one = pending[i]
        if not picked:
            shape, width = one.shape, width_of(one.shape)
        elif one.shape != shape or rows + one.num_rows > width:
            continue
        picked.append(i)
        rows += one.num_rows
    return sorted(picked)


def widths(seconds: Mapping[tuple[S, int], float], least_gain: float = LEAST_GAIN) -> dict[S, int]:
    """How many rows of each shape are to share a pass, from the seconds that one of (shape, rows)
    takes: the narrowest that no wider one beats by `least_gain` in seconds per row."""
    measured: defaultdict[S, list[tuple[int, float]]] = defaultdict(list)
    for (shape, rows), took in seconds.items():
        measured[shape].append((rows, took / rows))
    return {shape: _width(sorted(per_row), least_gain) for shape, per_row in measured.items()}


def _width(per_row: Sequence[tuple[int, float]], least_gain: float) -> int:
    best, least = per_row[0]
    for rows, took in per_row[1:]:
        if took <= least * (1 - least_gain):
            best, least = rows, took
    return best
