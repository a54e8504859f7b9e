"""Goals of the GPU work on Qwen2.5-VL, beside the measurements of a run and vLLM's figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.common.goals import Goal
from benchmarks.qwen_vl.floors import Rates
from benchmarks.qwen_vl.quoted import PROMPTS, Beside, beside, card_of
from benchmarks.qwen_vl.shares import floors_of
from benchmarks.qwen_vl.sizes import SEVEN, THREE, size_of

GOALS: Mapping[str, Mapping[tuple[str, str], Mapping[str, Any]]] = {
    THREE.name: {
        ("1 x 1024x1024", "tpot_ms_mean"): {"limit": 3.0, "wish": 2.0},
        ("1 x text", "tpot_ms_mean"): {"limit": 3.0, "wish": 2.0},
        ("1 x 1024x1024", "ttft_ms_p50"): {"limit": 38},
        ("1 x 448x448", "ttft_ms_p50"): {"limit": 30, "wish": 18},
        ("1 x text", "ttft_ms_p50"): {"limit": 5},
        ("1 x same 1024x1024", "ttft_ms_p50"): {"limit": 20},
        ("64 x 1024x1024", "requests_per_s"): {"limit": 20, "wish": 26, "is_least": True},
        ("64 x 448x448", "requests_per_s"): {"limit": 60, "wish": 85, "is_least": True},
        ("64 x text", "requests_per_s"): {"limit": 100, "wish": 130, "is_least": True},
    },
    SEVEN.name: {},
}
"""By size, case and figure of the clients."""
ONE_CLIENT_MS: Mapping[tuple[str, str], float] = {
    (SEVEN.name, "H200"): 3.9,
    (SEVEN.name, "H100"): 4.9,
}
"""Of one client's token, by size and card, whatever the prompt."""
TIMES_VLLM: Mapping[str, float] = {SEVEN.name: 1.4}
"""Requests per second of 64 clients, of vLLM's, by size."""
NOT_BEHIND = ("tpot_ms_mean", "itl_ms_p99")
"""Of 64 clients: at most vLLM's."""
GAP_MS = 60.0
"""Between texts, 99th percentile, of 64 clients: the limit where vLLM's figure is larger."""
DECODE_SHARE = 0.75
"""Of the bandwidth's floor, of an engine's decode step with this many rows or more."""
DECODE_ROWS = 8

Results = Iterator[dict[str, Any]]


def held(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        *_of_clients(found),
        *_of_one_client(found),
        *_of_vllm(found),
        *_of_decoding(found),
        *_of_steps(found),
    ]


def _measured(found: Mapping[str, Any], case: str, figure: str) -> float | None:
    value: float | None = found.get("http", {}).get(case, {}).get(figure)
    return value


def _other(other: Beside | None, case: str, figure: str) -> float | None:
    return None if other is None else other.rows.get(case, {}).get(figure)


def _of_clients(found: Mapping[str, Any]) -> Results:
    other = beside(found)
    for (case, figure), goal in GOALS[size_of(found).name].items():
        measured = _measured(found, case, figure)
        if measured is not None:
            theirs = _other(other, case, figure)
            yield Goal(f"{case}: {figure}", other=theirs, **goal).result(measured)


def _of_one_client(found: Mapping[str, Any]) -> Results:
    figure, card, other = "tpot_ms_mean", card_of(found), beside(found)
    for (size, name), limit in ONE_CLIENT_MS.items():
        if size != size_of(found).name or name not in card:
            continue
        for case in (f"1 x {prompt}" for prompt in PROMPTS):
            measured = _measured(found, case, figure)
            if measured is not None:
                theirs = _other(other, case, figure)
                yield Goal(f"{case}: {figure}", limit, other=theirs).result(measured)


def _of_vllm(found: Mapping[str, Any]) -> Results:
    """Of 64 clients, relative to vLLM's figures, where there are any. A limit for gaps also without
    them."""
    other, times = beside(found), TIMES_VLLM.get(size_of(found).name)
    for case in (f"64 x {prompt}" for prompt in PROMPTS):
        for figure in NOT_BEHIND:
            measured, theirs = _measured(found, case, figure), _other(other, case, figure)
            limits = [theirs, GAP_MS if figure == "itl_ms_p99" else None]
            known = [limit for limit in limits if limit is not None]
            if measured is not None and known:
                yield Goal(f"{case}: {figure}", min(known), other=theirs).result(measured)
        rate = "requests_per_s"
        measured, theirs = _measured(found, case, rate), _other(other, case, rate)
        if times is not None and measured is not None and theirs is not None:
            least = times * theirs
            yield Goal(f"{case}: {rate}", least, is_least=True, other=theirs).result(measured)


def _of_decoding(found: Mapping[str, Any]) -> Results:
    """The engine's steps without a server, beside reading weights, keys and values once."""
    ceilings = found.get("ceilings", {})
    if "copy_bytes_per_s" not in ceilings:
        return
    floors, rates = floors_of(found), Rates.of(ceilings)
    for row in found.get("ours", {}).get("decode steps", ()):
        if row["rows"] >= DECODE_ROWS:
            share = floors.decode_ms(rates, row["rows"], row["tokens"]) / row["step_ms"]
            what = f"decoding {row['rows']} rows after {row['prompt']}: share of the floor"
            yield Goal(what, DECODE_SHARE, is_least=True).result(share)


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
