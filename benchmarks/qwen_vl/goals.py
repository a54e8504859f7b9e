"""What the GPU work on Qwen2.5-VL was to reach, and what vLLM gave, beside what a run measured.
Knows goals; measures nothing.

A goal that a run has no figure for is not in the list: nothing is claimed that was not measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

VLLM_SOURCE = (
    "vLLM 0.24.0 on an H100 80GB HBM3 on 2026-11-23, Qwen2.5-VL-3B's shape, dummy weights, bf16, "
    "FlashAttention 3, its default compile and graphs, prefix and processor caches off, 64 "
    "sequences; streaming client, about 60 text tokens in, 128 out, closed loop"
)
VLLM: Mapping[str, Mapping[str, float]] = {
    "1 x 1024x1024": {
        "requests_per_s": 1.60, "ttft_ms_p50": 146, "ttft_ms_p99": 168,
        "tpot_ms_mean": 3.77, "itl_ms_p99": 4.2,
    },
    "1 x 448x448": {
        "requests_per_s": 1.74, "ttft_ms_p50": 111, "ttft_ms_p99": 119,
        "tpot_ms_mean": 3.72, "itl_ms_p99": 4.2,
    },
    "1 x text": {
        "requests_per_s": 2.04, "ttft_ms_p50": 19, "ttft_ms_p99": 23,
        "tpot_ms_mean": 3.70, "itl_ms_p99": 4.0,
    },
    "64 x 1024x1024": {
        "requests_per_s": 14.4, "ttft_ms_p50": 2149, "ttft_ms_p99": 3866,
        "tpot_ms_mean": 17.7, "itl_ms_p99": 145,
    },
    "64 x 448x448": {
        "requests_per_s": 36.7, "ttft_ms_p50": 905, "ttft_ms_p99": 1171,
        "tpot_ms_mean": 6.7, "itl_ms_p99": 95,
    },
    "64 x text": {
        "requests_per_s": 82.2, "ttft_ms_p50": 177, "ttft_ms_p99": 244,
        "tpot_ms_mean": 4.68, "itl_ms_p99": 26,
    },
}  # fmt: skip
"""Measured elsewhere, on another card than ours: a mark to pass, no ratio within a run."""


@dataclass(frozen=True, slots=True)
class Goal:
    """One promise: a figure of a case has to be at least or at most `limit`; `wish` is more."""

    case: str
    figure: str
    limit: float
    wish: float | None
    is_least: bool = False

    def is_met(self, measured: float, limit: float) -> bool:
        """Whether `measured` is on the right side."""
        return measured >= limit if self.is_least else measured <= limit


GOALS = (
    Goal("1 x 1024x1024", "tpot_ms_mean", 3.0, 2.0),
    Goal("1 x text", "tpot_ms_mean", 3.0, 2.0),
    Goal("1 x 1024x1024", "ttft_ms_p50", 60, 38),
    Goal("1 x 448x448", "ttft_ms_p50", 30, 18),
    Goal("1 x text", "ttft_ms_p50", 12, None),
    Goal("1 x same 1024x1024", "ttft_ms_p50", 20, None),
    Goal("64 x 1024x1024", "requests_per_s", 20, 26, is_least=True),
    Goal("64 x 448x448", "requests_per_s", 60, 85, is_least=True),
    Goal("64 x text", "requests_per_s", 100, 130, is_least=True),
    Goal("64 x 1024x1024", "itl_ms_p99", 60, None),
    Goal("64 x 448x448", "itl_ms_p99", 60, None),
    Goal("64 x text", "itl_ms_p99", 60, None),
)


def held(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every goal that this run says something about, as plain values."""
    return [*_of_clients(found.get("http", {})), *_of_steps(found)]


def _of_clients(http: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for goal in GOALS:
        measured = http.get(goal.case, {}).get(goal.figure)
        if measured is not None:
            yield {
                "case": goal.case,
                "figure": goal.figure,
                "measured": measured,
                "limit": goal.limit,
                "wish": goal.wish,
                "at": "least" if goal.is_least else "most",
                "held": goal.is_met(measured, goal.limit),
                "wish_held": None if goal.wish is None else goal.is_met(measured, goal.wish),
            }


def _of_steps(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    ended = found.get("http", {}).get("counters", {}).get("at the end", {})
    for name in ("recompilations_total", "graph_captures_total"):
        numbers = [number for series, number in ended.items() if series.startswith(name)]
        if numbers:
            yield _zero("all clients' cases", name, sum(numbers))
    syncs = found.get("ours", {}).get("syncs while decoding")
    if syncs is not None:
        yield _zero("decoding", "synchronising calls", 0 if syncs == 0 else 1)
    for prompt, is_near in found.get("accuracy", {}).get("as near as the peer", {}).items():
        yield _zero(f"logits, {prompt}", "farther from float32 than the peer", int(not is_near))
    rounds = found.get("soak", {}).get("rounds", [])
    if rounds:
        failed = sum(each["failed"] for each in rounds[-1:])
        yield _zero(f"{rounds[-1]['requests']} requests", "failed", failed)


def _zero(case: str, figure: str, measured: float) -> dict[str, Any]:
    return {
        "case": case,
        "figure": figure,
        "measured": measured,
        "limit": 0,
        "wish": None,
        "at": "most",
        "held": measured == 0,
        "wish_held": None,
    }
