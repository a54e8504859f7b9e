"""Figures of a load: rates, goodput, errors by status, and quantiles of what callers wait for."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from predictors.cli.bench.intervals import RATIO_METHOD, quantile, ratio_interval
from predictors.cli.bench.load import Sample

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
TIMES = ("ttft", "tpot", "itl", "latency")
"""To the first token; per token after it; between two chunks of text; of the whole answer."""
COMPARED = (
    ("rate", ("answered_per_s",)),
    ("tokens/s", ("tokens_per_s",)),
    ("ttft p50", ("ttft_ms", "p50")),
    ("tpot p50", ("tpot_ms", "p50")),
    ("latency p50", ("latency_ms", "p50")),
    ("latency p95", ("latency_ms", "p95")),
)
"""Figures whose ratios a comparison prints, and where they are in a summary."""


def times_of(samples: Iterable[Sample]) -> dict[str, list[float]]:
    """Seconds of the requests that were answered, by the names of `TIMES`."""
    good = [sample for sample in samples if sample.is_ok]
    return {
        "ttft": [sample.first_s for sample in good if sample.first_s is not None],
        "tpot": [tpot for sample in good if (tpot := sample.tpot_s) is not None],
        "itl": [gap for sample in good for gap in sample.gaps_s],
        "latency": [sample.latency_s for sample in good],
    }


def is_good(sample: Sample, goals_s: Mapping[str, float]) -> bool:
    """Answered, and within every goal that applies to it."""
    measured = {"ttft": sample.first_s, "tpot": sample.tpot_s, "latency": sample.latency_s}
    return sample.is_ok and all(
        (value := measured[name]) is None or value <= goal for name, goal in goals_s.items()
    )


def summarise_load(
    samples: Sequence[Sample], seconds: float, goals_s: Mapping[str, float]
) -> dict[str, Any]:
    """The figures of one load that took `seconds`, as JSON values. Times are in milliseconds."""
    good = sum(is_good(sample, goals_s) for sample in samples)
    answered = sum(sample.is_ok for sample in samples)
    tokens = sum(sample.tokens for sample in samples if sample.is_ok)
    errors = Counter(sample.status for sample in samples if not sample.is_ok)
    return {
        "requests": len(samples),
        "answered": answered,
        "seconds": round(seconds, 3),
        "answered_per_s": round(answered / seconds, 4),
        "goodput_per_s": round(good / seconds, 4),
        "good_share": round(good / len(samples), 4) if samples else None,
        "tokens_per_s": round(tokens / seconds, 3),
        **{f"{name}_ms": spread_ms(values) for name, values in times_of(samples).items()},
        "lag_ms": spread_ms([sample.lag_s for sample in samples]),
        "errors": dict(errors.most_common()),
        "error_words": {each.status: each.words for each in samples if each.words},
        "kinds": dict(Counter(sample.name for sample in samples)),
    }


def spread_ms(values: Sequence[float]) -> dict[str, float] | None:
    """Mean and quantiles in milliseconds; None without values."""
    if not values:
        return None
    found = {name: quantile(values, share) or 0.0 for name, share in QUANTILES.items()}
    means = {"mean": statistics.fmean(values), **found}
    return {name: round(1000 * value, 3) for name, value in means.items()}


def compared_rounds(
    first: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The ratio other / first of each figure, by round, with its mean and 95 % interval. A round in
    which one of the two has no such figure is left out, and counted."""
    ratios: dict[str, Any] = {}
    for name, path in COMPARED:
        pairs = [
            (a, b)
            for one, two in zip(first, other, strict=True)
            if (a := figure(one, path)) and (b := figure(two, path))
        ]
        if len(pairs) >= 2:
            by_round = [b / a for a, b in pairs]
            low, high = ratio_interval(by_round)
            ratios[name] = {
                "ratio": round(statistics.geometric_mean(by_round), 4),
                "interval_95": [round(low, 4), round(high, 4)],
                "rounds": [round(ratio, 4) for ratio in by_round],
                "rounds_left_out": len(first) - len(by_round),
            }
    return {"method": RATIO_METHOD, "ratios": ratios}


def figure(summary: Mapping[str, Any], path: Sequence[str]) -> float | None:
    """A number of a summary, or None where it has none."""
    found: Any = summary
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) else None
