"""Goals of the GPU work on Qwen2.5-VL and vLLM's figures, beside the measurements of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.common.goals import Goal

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
"""Measured elsewhere on another card, so not comparable within a run: vLLM 0.24.0 on an H100 80GB
HBM3 on 2026-11-23, Qwen2.5-VL-3B's shape, dummy weights, bf16, FlashAttention 3, its default
compile and graphs, prefix and processor caches off, 64 sequences; streaming client, about 60 text
tokens in, 128 out, closed loop."""


GOALS: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("1 x 1024x1024", "tpot_ms_mean"): {"limit": 3.0, "wish": 2.0},
    ("1 x text", "tpot_ms_mean"): {"limit": 3.0, "wish": 2.0},
    ("1 x 1024x1024", "ttft_ms_p50"): {"limit": 60, "wish": 38},
    ("1 x 448x448", "ttft_ms_p50"): {"limit": 30, "wish": 18},
    ("1 x text", "ttft_ms_p50"): {"limit": 12},
    ("1 x same 1024x1024", "ttft_ms_p50"): {"limit": 20},
    ("64 x 1024x1024", "requests_per_s"): {"limit": 20, "wish": 26, "is_least": True},
    ("64 x 448x448", "requests_per_s"): {"limit": 60, "wish": 85, "is_least": True},
    ("64 x text", "requests_per_s"): {"limit": 100, "wish": 130, "is_least": True},
    ("64 x 1024x1024", "itl_ms_p99"): {"limit": 60},
    ("64 x 448x448", "itl_ms_p99"): {"limit": 60},
    ("64 x text", "itl_ms_p99"): {"limit": 60},
}
"""By case and figure of the clients."""

Results = Iterator[dict[str, Any]]


def held(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*_of_clients(found.get("http", {})), *_of_steps(found)]


def _of_clients(http: Mapping[str, Any]) -> Results:
    for (case, figure), goal in GOALS.items():
        measured = http.get(case, {}).get(figure)
        if measured is not None:
            other = VLLM.get(case, {}).get(figure)
            yield Goal(f"{case}: {figure}", other=other, **goal).result(measured)


def _of_steps(found: Mapping[str, Any]) -> Results:
    ended = found.get("http", {}).get("counters", {}).get("at the end", {})
    for name in ("recompilations_total", "graph_captures_total"):
        numbers = [number for series, number in ended.items() if series.startswith(name)]
        if numbers:
            yield Goal(f"all clients' cases: {name}", 0).result(sum(numbers))
    syncs = found.get("ours", {}).get("syncs while decoding")
    if syncs is not None:
        yield Goal("decoding: synchronising calls", 0).result(0 if syncs == 0 else 1)
    for prompt, is_near in found.get("accuracy", {}).get("as near as the peer", {}).items():
        what = f"logits, {prompt}: farther from float32 than the peer"
        yield Goal(what, 0).result(int(not is_near))
    if rounds := found.get("soak", {}).get("rounds"):
        last = rounds[-1]
        yield Goal(f"{last['requests']} requests: failed", 0).result(last["failed"])
