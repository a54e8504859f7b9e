"""Figures and tables of what `benchmarks.serving.step_probe` wrote, of the steps and requests of a
case's clients. Own processor time stands beside the wall's: the difference is what a phase
waited for the device, the interpreter's lock or a core.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.common.journal import Rows
from benchmarks.qwen_vl.answers import Answered
from benchmarks.serving.step_probe import PHASES
from predictors.cli.bench.intervals import quantile

SLOWEST = "slowest 1 %"
WAITS = (
    "sent to head", "head to submitted", "submitted to slot", "slot to launch", "launch to token",
    "token to event loop", "event loop to client",
)  # fmt: skip
"""From a client's sending to its first text: their means add up to its first token's. The first
pass is launched after the pictures' encoding."""


def probe_figures(found: Mapping[str, Any], answers: Sequence[Answered]) -> dict[str, Any]:
    """Of the steps that began while these were answered, by the clock that clients and server
    share, and of the requests by their ids."""
    good = [each for each in answers if each.error is None and each.texts]
    began, ended = min(each.sent for each in answers), max(each.ended for each in answers)
    steps = [each for each in found["rounds"] if began <= each["at"] <= ended]
    ways = ((each, found["requests"].get(each.id.partition("-")[2])) for each in good)
    requests = [[each.sent, *way, each.texts[0]] for each, way in ways if way is not None]
    steps.sort(key=_total_s)
    groups = {
        "without prompts": [each for each in steps if not each["prompts"]],
        "with prompts": [each for each in steps if each["prompts"]],
        SLOWEST: steps[-max(1, len(steps) // 100) :],
    }
    return {
        "steps": {
            name: _phases(group, statistics.fmean if name == SLOWEST else statistics.median)
            for name, group in groups.items()
            if group
        },
        "requests": {name: _wait(requests, i) for i, name in enumerate(WAITS) if requests},
    }


def _total_s(step: Mapping[str, Any]) -> float:
    return float(sum(wall for wall, _ in step["phases"].values()))


def _phases(
    steps: Sequence[Mapping[str, Any]], middle: Callable[[Sequence[float]], float]
) -> dict[str, Any]:
    """Milliseconds of a group of steps, its median or mean: of the whole, and of each phase by the
    wall and of its own processor time."""

    def middle_ms(phase: str, kind: int) -> float:
        nothing = (0.0, 0.0)
        return 1e3 * middle([step["phases"].get(phase, nothing)[kind] for step in steps])

    return {
        "count": len(steps),
        "rows": statistics.fmean(step["rows"] for step in steps),
        "prompts": statistics.fmean(step["prompts"] for step in steps),
        "total_ms": 1e3 * middle([_total_s(step) for step in steps]),
        **{phase: [middle_ms(phase, 0), middle_ms(phase, 1)] for phase in PHASES},
    }


def _wait(requests: Sequence[Sequence[float]], place: int) -> dict[str, float | None]:
    times = [1e3 * (marks[place + 1] - marks[place]) for marks in requests]
    shares = {"p50_ms": 0.50, "p99_ms": 0.99}
    found = {name: quantile(times, share) for name, share in shares.items()}
    return {"mean_ms": statistics.fmean(times), **found}


def steps_table(cases: Mapping[str, Any]) -> Rows:
    """Of `probe_figures` by case."""
    yield (
        "steps: medians (slowest: means), ms (own processor time)", "number", "rows", "prompts",
        "whole", *PHASES,
    )  # fmt: skip
    for case, found in cases.items():
        for name, row in found["steps"].items():
            phases = (f"{row[phase][0]:.2f} ({row[phase][1]:.2f})" for phase in PHASES)
            sizes = f"{row['rows']:.1f}", f"{row['prompts']:.1f}"
            yield f"{case}: {name}", f"{row['count']}", *sizes, f"{row['total_ms']:.2f}", *phases


def waits_table(cases: Mapping[str, Any]) -> Rows:
    yield "a first token's way, ms: mean (p50, p99)", *WAITS
    for case, found in cases.items():
        if found["requests"]:
            yield case, *(time_cell(found["requests"][name]) for name in WAITS)


def time_cell(row: Mapping[str, float]) -> str:
    """Mean, p50 and p99 as in the tables."""
    return f"{row['mean_ms']:.1f} ({row['p50_ms']:.1f}, {row['p99_ms']:.1f})"
