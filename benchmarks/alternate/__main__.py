"""Compares the speed of two checkouts: `--parent` and this one. Both are loaded in long-lived
processes on one machine and take turns, the first one changing with every pair; printed is the
ratio of each pair (above 1: this checkout is slower), its median and its 95 % interval.

`python -m benchmarks.alternate --parent FOLDER` compares the CPU families; on a GPU
`--only flux,qwen_vl`. `--small --device cpu` runs those at the embedded checkpoints' size. The
results are written after every pair. The exit status is 1 if an interval ends above `--limit`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.alternate.families import FAMILIES, ON_CPU, Options, Run, Tree
from benchmarks.common import paths
from benchmarks.common.tables import columns
from predictors.cli.bench.intervals import RATIO_METHOD, ratio_interval

Figures = dict[str, dict[str, list[float]]]
"""Name of a figure -> tree -> one value per pair."""


class Comparison:
    """The pairs of one family; `figures` grows by one value per tree and pair."""

    def __init__(self, runs: Mapping[str, Mapping[str, Run]]) -> None:
        self._runs = runs
        self.figures: Figures = {}

    def warm(self) -> None:
        for runs in self._runs.values():
            for run in runs.values():
                run(-1)

    def pair(self, number: int) -> None:
        """Every run once by each tree; who begins changes from pair to pair."""
        trees = list(self._runs)[:: 1 if number % 2 == 0 else -1]
        found: Figures = {}
        for name in next(iter(self._runs.values())):
            for tree in trees:
                for figure, value in self._runs[tree][name](number).items():
                    found.setdefault(f"{name}, {figure}", {})[tree] = [value]
        for name, by in found.items():
            known = self.figures.setdefault(name, {tree: [] for tree in self._runs})
            for tree, values in by.items():
                known[tree] += values


def compared(parent: Sequence[float], this: Sequence[float], limit: float) -> dict[str, Any]:
    """One figure: medians, ratios by pair, and whether the interval's end keeps the limit."""
    ratios = [b / a for a, b in zip(parent, this, strict=True)]
    interval: Sequence[float] = ratio_interval(ratios) if len(ratios) > 1 else ()
    return {
        "parent": statistics.median(parent),
        "this": statistics.median(this),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "ratio_median": round(statistics.median(ratios), 4),
        "ratio_interval_95": [round(bound, 4) for bound in interval],
        "not_slower": bool(interval) and interval[-1] <= limit,
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [("figure", "parent", "this", "ratios", "median", "95 % interval", "not slower")]
    for family, figures in results.items():
        for name, each in figures.items():
            lines.append(
                (
                    f"{family}: {name}",
                    f"{each['parent']:.4g}",
                    f"{each['this']:.4g}",
                    " ".join(f"{ratio:.3f}" for ratio in each["ratios"]),
                    f"{each['ratio_median']:.3f}",
                    " to ".join(f"{bound:.3f}" for bound in each["ratio_interval_95"]) or "-",
                    "yes" if each["not_slower"] else "NO",
                )
            )
    return columns(lines)


def one_family(
    family: str, trees: Sequence[Tree], asked: argparse.Namespace, report: dict[str, Any]
) -> None:
    """Start, warm up, take turns until the pairs or the budget are used up; writes each pair."""
    began = time.monotonic()
    with ExitStack() as stack:
        options = Options(asked.device, asked.small)
        runs = {tree.name: FAMILIES[family](stack, tree, options) for tree in trees}
        comparison = Comparison(runs)
        comparison.warm()
        print(f"{family}: ready after {time.monotonic() - began:.0f} s", flush=True)
        for number in range(asked.pairs):
            started = time.monotonic()
            comparison.pair(number)
            spent = time.monotonic() - started
            report["results"][family] = {
                name: compared(by["parent"], by["this"], asked.limit)
                for name, by in comparison.figures.items()
            }
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            asked.out.write_text(json.dumps(report, indent=1) + "\n")
            print(f"{family}: pair {number + 1} of {asked.pairs}, {spent:.1f} s", flush=True)
            if time.monotonic() - asked.began + spent > asked.budget:
                print(f"{family}: no time for another pair", flush=True)
                return


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alternate", description=__doc__)
    add = parser.add_argument
    add("--parent", type=Path, required=True, help="the other checkout")
    add("--only", default=",".join(ON_CPU), help=f"of {', '.join(FAMILIES)}")
    add("--pairs", type=int, default=5)
    add("--limit", type=float, default=1.03, help="largest ratio that is not slower")
    add("--device", default="cuda:0", help="of flux and qwen_vl")
    add("--small", action="store_true", help="flux and qwen_vl at the embedded size")
    add("--budget", type=float, default=float("inf"), help="seconds; no pair begins later")
    add("--out", type=Path, default=paths.SCRATCH / "alternate.json", help="the JSON file")
    asked = parser.parse_args(arguments)
    asked.names = [name.strip() for name in asked.only.split(",") if name.strip()]
    if unknown := set(asked.names) - set(FAMILIES):
        parser.error(f"--only takes {', '.join(FAMILIES)}, not {', '.join(sorted(unknown))}")
    asked.began = time.monotonic()
    return asked


def main(arguments: Sequence[str] | None = None) -> int:
    """The status is 1 if a family failed or a figure is slower."""
    asked = read_arguments(arguments)
    trees = [Tree("parent", asked.parent.resolve()), Tree("this", paths.ROOT)]
    report: dict[str, Any] = {
        "method": RATIO_METHOD,
        "limit": asked.limit,
        "results": {},
        "failed": {},
    }
    for family in asked.names:
        try:
            one_family(family, trees, asked, report)
        except Exception as error:  # noqa: BLE001 - the other families may still be measured
            report["failed"][family] = repr(error)[:2000]
            print(f"{family} FAILED: {error!r}", flush=True)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{table(report['results'])}\nwritten to {asked.out}")
    slower = [
        name
        for figures in report["results"].values()
        for name, each in figures.items()
        if not each["not_slower"]
    ]
    return 1 if slower or report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
