"""Figures of fixed samples."""

from __future__ import annotations

import pytest

from predictors.cli.bench.load import Sample
from predictors.cli.bench.summary import compared_rounds, is_good, summarise_load
from predictors.cli.bench.tables import load_lines, load_plot, ratio_lines


def answered(latency_s: float, first_s: float | None = None, tokens: int = 0) -> Sample:
    return Sample("chat", 0.0, 0.001, "200", True, latency_s, first_s, [0.01] * tokens, tokens)


SAMPLES = [
    answered(1.0, 0.1, 10),
    answered(2.0, 0.2, 11),
    answered(3.0),
    Sample("chat", 0.0, status="503", words="the queue is full"),
    Sample("chat", 0.0, status="503"),
    Sample("chat", 0.0, status="connection lost"),
]


def test_rates_quantiles_and_errors_of_fixed_samples() -> None:
    found = summarise_load(SAMPLES, 2.0, {})
    assert (found["requests"], found["answered"], found["answered_per_s"]) == (6, 3, 1.5)
    assert found["tokens_per_s"] == 10.5
    assert found["latency_ms"] == {"mean": 2000.0, "p50": 2000.0, "p95": 3000.0, "p99": 3000.0}
    assert found["ttft_ms"]["p50"] == 100.0
    assert found["tpot_ms"]["p99"] == 180.0
    assert found["itl_ms"]["p50"] == 10.0
    assert found["errors"] == {"503": 2, "connection lost": 1}
    assert found["error_words"] == {"503": "the queue is full"}


def test_goodput_counts_what_keeps_every_goal() -> None:
    assert is_good(SAMPLES[0], {"ttft": 0.15, "latency": 1.0})
    assert not is_good(SAMPLES[1], {"ttft": 0.15})
    assert is_good(SAMPLES[2], {"ttft": 0.15})  # no stream, so the goal does not apply
    assert not is_good(SAMPLES[3], {})
    assert summarise_load(SAMPLES, 2.0, {"latency": 1.5})["goodput_per_s"] == 0.5


def test_ratios_are_paired_by_round() -> None:
    first = [summarise_load([answered(x)], 1.0, {}) for x in (1.0, 2.0, 4.0)]
    other = [summarise_load([answered(x)], 1.0, {}) for x in (1.1, 2.2, 4.4)]
    ratios = compared_rounds(first, other)["ratios"]
    assert ratios["latency p50"]["rounds"] == [1.1, 1.1, 1.1]
    assert ratios["latency p50"]["interval_95"] == pytest.approx([1.1, 1.1])
    assert ratios["rate"]["ratio"] == 1.0
    assert "ttft p50" not in ratios  # neither has one


def test_a_round_that_one_of_both_did_not_answer_is_left_out_and_counted() -> None:
    first = [summarise_load([answered(x)], 1.0, {}) for x in (1.0, 2.0, 4.0)]
    other = [summarise_load([answered(x)], 1.0, {}) for x in (1.1, 2.2)]
    other.append(summarise_load(SAMPLES[3:], 1.0, {}))
    report = {"first": {"url": "http://a"}, "other": {"url": "http://b"}}
    report |= compared_rounds(first, other)
    found = report["ratios"]["latency p50"]
    assert (found["rounds"], found["rounds_left_out"]) == ([1.1, 1.1], 1)
    assert "1.100 1.100   (1 left out)" in "\n".join(ratio_lines(report))


def test_a_load_without_any_answer_has_a_table_and_a_plot() -> None:
    report = {"url": "http://h", **summarise_load(SAMPLES[3:], 1.0, {})}
    lines = list(load_lines(report))
    assert lines[-2:] == [
        "failed with 503: 2 (the queue is full)",
        "failed with connection lost: 1",
    ]
    assert load_plot({"http://h": {kind: [] for kind in ("ttft", "tpot", "itl", "latency")}})


def test_a_load_without_tokens_shows_no_rate_of_them() -> None:
    words = summarise_load(SAMPLES, 2.0, {}), summarise_load([answered(3.0)], 3.0, {})
    shown = ["\n".join(load_lines({"url": "http://a", **report})) for report in words]
    assert "10.5 tokens/s" in shown[0]
    assert "tokens/s" not in shown[1]
