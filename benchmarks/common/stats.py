"""Statistics of the benchmarks: medians with their spread, and confidence intervals of shares and
of paired differences of shares. The methods are named because the results files quote them.
Quantiles and intervals of ratios are in `predictors.cli.bench.intervals`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Z_95 = 1.959964
SHARE_METHOD = "Wilson 1927"
DIFFERENCE_METHOD = (
    "paired by prompt and seed, in points; Bonett and Price 2012: Wald's interval after one pair "
    "is added to each of the two kinds of disagreement"
)


@dataclass(frozen=True, slots=True)
class Spread:
    median: float
    least: float
    largest: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    def times(self, factor: float) -> Spread:
        return Spread(
            factor * self.median, factor * self.least, factor * self.largest, self.repeats
        )


def share_interval(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, E. B. Wilson 1927."""
    share, z2 = right / total, Z_95**2
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z_95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return middle - half, middle + half


def difference_interval(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, float]:
    """95 % interval of share(second) - share(first) over the same prompts.

    Bonett and Price 2012: Wald's interval with one pair added to each kind of disagreement, which
    holds its level also where hardly any pair disagrees.
    """
    total = len(first)
    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    won = sum(b and not a for a, b in zip(first, second, strict=True))
    p_lost, p_won = (lost + 1) / (total + 2), (won + 1) / (total + 2)
    half = Z_95 * math.sqrt((p_lost + p_won - (p_won - p_lost) ** 2) / (total + 2))
    return max(p_won - p_lost - half, -1.0), min(p_won - p_lost + half, 1.0)
