"""Statistics of the benchmarks: medians with their spread, quantiles, and confidence intervals of
shares, of paired differences of shares, and of paired ratios. The methods are named because the
results files quote them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Z_95 = 1.959964
SHARE_METHOD = "Wilson 1927"
DIFFERENCE_METHOD = (
    "paired by prompt and seed, in points; Bonett and Price 2012: Wald's interval after one pair "
    "is added to each of the two kinds of disagreement"
)
RATIO_METHOD = "geometric mean of paired ratios; Student's t interval of their logarithms"
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip
"""97.5 % quantile of Student's t for 1, 2, ... 20 degrees of freedom."""


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


def quantile(values: Iterable[float], share: float) -> float | None:
    """The smallest value that at least `share` of all values do not exceed. None without values."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


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


def ratio_interval(ratios: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of paired ratios; two pairs at least."""
    logs = [math.log(ratio) for ratio in ratios]
    freedom = len(logs) - 1
    t = T_975[freedom - 1] if freedom <= len(T_975) else Z_95
    middle, half = statistics.fmean(logs), t * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(middle - half), math.exp(middle + half)
