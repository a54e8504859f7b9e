"""What the GPU tier was built to reach, beside what a run measured. Knows goals; measures nothing.

A goal that a run has no figure for is not in the list: nothing is claimed that was not measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.flux.cases import Row, Stages
from benchmarks.flux.report import columns, ratio

RATIOS = {"here lossless": 1.25, "here high": 1.75, "here turbo": 2.8}
"""Times faster than diffusers compiled: 1024x1024, 28 steps, one picture, embeddings to PNG."""
SIZE, STEPS = "1024x1024", 28
SCHNELL_S = 0.50
VAE_MS = 32.0
VAE_STAGE = "vae, with uint8 and its copy"
WARM_SHARE = 1 / 3


@dataclass(frozen=True, slots=True)
class Goal:
    """One promise and its measurement."""

    what: str
    measured: float
    limit: float
    is_least: bool
    """Whether the limit is from below."""

    @property
    def is_held(self) -> bool:
        """Whether it was reached."""
        return self.measured >= self.limit if self.is_least else self.measured <= self.limit


def held(
    rows: Sequence[Row], stages: Sequence[Stages], found: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Every goal that this run says something about, as plain values."""
    goals = [*_ratios(rows), *_schnell(rows), *_vae(stages), *_start(found), *_steady(found)]
    return [
        {
            "what": goal.what,
            "measured": goal.measured,
            "limit": goal.limit,
            "at": "least" if goal.is_least else "most",
            "held": goal.is_held,
        }
        for goal in goals
    ]


def as_text(goals: Sequence[Mapping[str, Any]]) -> str:
    """One line per goal."""
    lines = [("goal", "measured", "asked for", "held")]
    for goal in goals:
        asked = f"at {goal['at']} {goal['limit']:.3g}"
        lines.append(
            (goal["what"], f"{goal['measured']:.3f}", asked, "yes" if goal["held"] else "NO")
        )
    return columns(lines)


def _ratios(rows: Sequence[Row]) -> Iterator[Goal]:
    for row in rows:
        case, times = row.case, ratio(rows, row)
        is_it = (case.model, case.size, case.steps, case.batch) == ("dev", SIZE, STEPS, 1)
        if is_it and times is not None and row.engine in RATIOS:
            what = f"{row.engine}, times faster than diffusers compiled"
            yield Goal(what, times, RATIOS[row.engine], is_least=True)


def _schnell(rows: Sequence[Row]) -> Iterator[Goal]:
    for row in rows:
        is_it = row.case.model == "schnell" and row.case.size == SIZE and row.engine in RATIOS
        if is_it:
            what = f"{row.engine}, schnell in {row.case.steps} steps, seconds"
            yield Goal(what, row.seconds.median, SCHNELL_S, is_least=False)


def _vae(stages: Sequence[Stages]) -> Iterator[Goal]:
    for each in stages:
        ms = each.ms.get(VAE_STAGE)
        if ms is not None and each.case.size == SIZE and each.engine == "here lossless":
            yield Goal("autoencoder, ms", ms.median, VAE_MS, is_least=False)


def _start(found: Mapping[str, Any]) -> Iterator[Goal]:
    told = {"warm_share_of_cold": "warm-up", "compile_share_of_cold": "compile time"}
    for key, what in told.items():
        if (share := found.get("start", {}).get(key)) is not None:
            yield Goal(f"warm start's share of the cold {what}", share, WARM_SHARE, is_least=False)


def _steady(found: Mapping[str, Any]) -> Iterator[Goal]:
    if "steady" not in found:
        return
    for what, number in found["steady"]["since ready"].items():
        yield Goal(f"{what} after ready", number, 0, is_least=False)
    for prompt in ("known prompt", "new prompt"):
        syncs = found["steady"][prompt]["host_syncs"]
        number = syncs if isinstance(syncs, int) else 1
        yield Goal(f"host syncs, {prompt}", number, 0, is_least=False)
