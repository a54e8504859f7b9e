"""Quantiles, and the confidence interval of paired ratios, of `bench` and of the benchmarks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

Z_95 = 1.959964
RATIO_METHOD = "geometric mean of paired ratios; Student's t interval of their logarithms"
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip
"""97.5 % quantile of Student's t for 1, 2, ... 20 degrees of freedom."""


def t_975(freedom: int) -> float:
    """97.5 % quantile of Student's t; above 20 degrees of freedom by Fisher's expansion around the
    normal one, within 0.0003."""
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    z = Z_95
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2


def quantile(values: Iterable[float], share: float) -> float | None:
    """The smallest value that at least `share` of all values do not exceed. None without values."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def ratio_interval(ratios: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of paired ratios; two pairs at least."""
    logs = [math.log(ratio) for ratio in ratios]
    freedom = len(logs) - 1
    middle = statistics.fmean(logs)
    half = t_975(freedom) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(middle - half), math.exp(middle + half)
