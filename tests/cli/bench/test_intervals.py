"""Quantiles and the interval of paired ratios, on fixed samples."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from predictors.cli.bench.intervals import quantile, ratio_interval, t_975


def test_a_quantile_is_a_value_of_the_sample() -> None:
    assert quantile([], 0.5) is None
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile(range(1, 101), 0.95) == 95
    assert quantile(range(1, 101), 0.99) == 99
    assert quantile([7.0], 0.99) == 7.0


def test_the_interval_of_ratios_is_students_on_logarithms() -> None:
    ratios = [1.02, 0.98, 1.05, 1.01, 0.99, 1.03]
    logs = [math.log(ratio) for ratio in ratios]
    # 2.570582 is the 97.5 % quantile of Student's t with 5 degrees of freedom, from tables
    half = 2.570582 * statistics.stdev(logs) / math.sqrt(6)
    low, high = ratio_interval(ratios)
    assert low == pytest.approx(math.exp(statistics.fmean(logs) - half), abs=1e-5)
    assert high == pytest.approx(math.exp(statistics.fmean(logs) + half), abs=1e-5)


@pytest.mark.parametrize(
    ("freedom", "quantile_975"),
    [(1, 12.706), (20, 2.0860), (21, 2.0796), (30, 2.0423), (60, 2.0003), (120, 1.9799)],
)
def test_students_quantile_is_that_of_the_tables(freedom: int, quantile_975: float) -> None:
    assert t_975(freedom) == pytest.approx(quantile_975, abs=3e-4)


@pytest.mark.parametrize("rounds", [2, 6, 7, 25])
def test_an_interval_of_equal_servers_holds_one_in_95_of_100_runs(rounds: int) -> None:
    """Also while the machine gets slower, since the one that begins changes with each round."""
    rng, held, runs = random.Random(7), 0, 4000
    for _ in range(runs):
        ratios, slower = [], 0.0
        for number in range(rounds):
            first = rng.gauss(slower, 0.05)
            other = rng.gauss(slower + 0.02, 0.05)
            slower += 0.04
            ratios.append(math.exp(first - other if number % 2 else other - first))
        low, high = ratio_interval(ratios)
        held += low <= 1 <= high
    assert 0.935 < held / runs < 0.975


def test_equal_pairs_have_a_ratio_of_one_without_width() -> None:
    assert ratio_interval([1.0] * 5) == (1.0, 1.0)


def test_a_turned_comparison_has_the_turned_interval() -> None:
    ratios = [1.2, 1.1, 1.4]
    low, high = ratio_interval(ratios)
    turned = ratio_interval([1 / ratio for ratio in ratios])
    assert turned == pytest.approx((1 / high, 1 / low))
