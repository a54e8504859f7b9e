"""vLLM's figures beside ours: those of the same run where vLLM was installed, else those of an
earlier run on the same kind of card. Nothing is quoted for a card on which it was not measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.qwen_vl.sizes import SEVEN, THREE, size_of

Figures = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Beside:
    label: str
    rows: Mapping[str, Figures]
    """By case, named as in the clients' results."""


PROMPTS = ("1024x1024", "448x448", "text")


def _quoted(version: str, *figures: tuple[float, float, float, float, float]) -> Beside:
    """By prompt: one client's first token and token in ms, then of 64 clients the requests per
    second, the gap between texts (99th percentile) and a token in ms."""
    rows: dict[str, Figures] = {}
    for prompt, (first, token, rate, gap, busy) in zip(PROMPTS, figures, strict=True):
        rows[f"1 x {prompt}"] = {"ttft_ms_p50": first, "tpot_ms_mean": token}
        many = {"requests_per_s": rate, "itl_ms_p99": gap, "tpot_ms_mean": busy}
        rows[f"64 x {prompt}"] = many
    return Beside(f"vLLM {version}, quoted", rows)


QUOTED: Mapping[tuple[str, str], Beside] = {
    (THREE.name, "H100"): _quoted(
        "0.24",
        (146, 3.77, 14.4, 145, 17.7),
        (111, 3.72, 36.7, 95, 6.7),
        (19, 3.70, 82.2, 26, 4.68),
    ),
    (THREE.name, "H200"): _quoted(
        "0.24",
        (129.5, 3.19, 17.03, 247, 14.2),
        (82.0, 3.13, 42.7, 32.7, 5.5),
        (17.5, 3.13, 89.0, 7.5, 4.4),
    ),
    (SEVEN.name, "H100"): _quoted(
        "0.24",
        (145.1, 6.50, 11.5, 370, 22.9),
        (94.9, 6.42, 28.8, 117, 10.3),
        (21.1, 6.40, 55.0, 22.5, 7.7),
    ),
    (SEVEN.name, "H200"): _quoted(
        "0.30",
        (113.9, 4.77, 12.9, 345, 19.4),
        (98.6, 4.74, 38.2, 33.9, 7.3),
        (20.7, 4.72, 74.4, 10.3, 5.4),
    ),
}
"""By size and card. 3B on an H100: 23 November 2026. The others: 28 November, with this client and
the same random weights, minutes from our figures, without prefix and processor caches, bf16, its
default compile and graphs, 64 sequences; 0.30 on torch 2.13 and triton 3.7.1, without flashinfer.
All: about 64 text tokens in, 128 out, 1,369 picture tokens of 1024x1024."""


def card_of(found: Mapping[str, Any]) -> str:
    """The card of a run, such as `NVIDIA H200`; empty if it is not told."""
    return str(found.get("make", {}).get("machine", {}).get("gpu") or "")


def beside(found: Mapping[str, Any]) -> Beside | None:
    """vLLM's figures for a run, or None if there are none for its card."""
    run = found.get("vllm", {})
    rows = {name: row for name, row in run.items() if isinstance(row, dict) and "case" in row}
    if rows:
        return Beside(f"vLLM {run.get('version', '')}".strip() + ", same run", rows)
    card = card_of(found)
    return next(
        (
            quote
            for (size, name), quote in QUOTED.items()
            if size == size_of(found).name and name in card
        ),
        None,
    )
