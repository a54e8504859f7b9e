"""Quality cost of the tiers: held-out prompts drawn by this engine in every tier with the same
seeds, read by a rule-based checker, and compared picture by picture.

`python -m benchmarks.flux.tiers` writes `results/flux_tiers.json` after every block of prompts, so
that a run cut short leaves its results. `--plans 12,14` adds turbo with other numbers of model
calls. It does not import KServe: a GPU machine may lack it.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import paths
from benchmarks.common.run import write_json
from benchmarks.common.stats import (
    DIFFERENCE_METHOD,
    SHARE_METHOD,
    difference_interval,
    share_interval,
)
from benchmarks.flux.likeness import DISTANCE_METHOD, Pixels, RandomFeatures, anchors, psnr_db
from benchmarks.flux.tiers_engine import (
    GUIDANCE,
    NUM_TOKENS,
    SIDE,
    STEPS,
    TiersEngine,
    Way,
    open_engine,
)
from benchmarks.flux.tiers_judge import Judges
from benchmarks.flux.tiers_plans import calling
from checkpoints.training.scenes import Scene, evaluation_scenes
from predictors.diffusion.request import LOSSLESS, TIERS, TURBO

RESULTS = paths.RESULTS / "flux_tiers.json"
SCENES_SEED = 1  # as `checkpoints.training.evaluate`
FIRST_SEED = 1000
BLOCK = 200
GOAL_POINTS = -1.0


@dataclass(slots=True)
class WayResults:
    """Results of one way so far, in order of the prompts."""

    way: Way
    right: list[bool] = field(default_factory=list)
    psnr_db: list[float] = field(default_factory=list)
    distance: list[float] = field(default_factory=list)
    seconds: float = 0.0
    calls: float = 0.0

    def row(self, exact: WayResults) -> dict[str, Any]:
        total = len(self.right)
        low, high = share_interval(sum(self.right), total)
        row = {
            "form_of_weights": None,
            "right": sum(self.right),
            "share": round(sum(self.right) / total, 4),
            "interval_95": [round(low, 4), round(high, 4)],
            "model_calls_per_picture": self.calls / total,
            "seconds_per_picture": round(self.seconds / total, 5),
        }
        return row if self is exact else row | self._difference(exact) | self._likeness()

    def _difference(self, exact: WayResults) -> dict[str, Any]:
        low, high = (100 * bound for bound in difference_interval(exact.right, self.right))
        pairs = list(zip(exact.right, self.right, strict=True))
        return {
            "difference_points": round(100 * (sum(self.right) - sum(exact.right)) / len(pairs), 3),
            "difference_interval_95": [round(low, 3), round(high, 3)],
            "only_lossless_right": sum(a and not b for a, b in pairs),
            "only_this_right": sum(b and not a for a, b in pairs),
            "above_goal": low > GOAL_POINTS,
        }

    def _likeness(self) -> dict[str, Any]:
        finite = [ratio for ratio in self.psnr_db if np.isfinite(ratio)]
        return {
            "identical_pictures": len(self.psnr_db) - len(finite),
            "psnr_db_mean": round(float(np.mean(finite)), 2) if finite else None,
            "psnr_db_5th_percentile": _quantile(finite, 0.05, 2),
            "distance_mean": round(float(np.mean(self.distance)), 5),
            "distance_95th_percentile": _quantile(self.distance, 0.95, 5),
        }


class TierComparison:
    """`narrow` draws the ways with fp8 conditioning, `engine` all others."""

    def __init__(
        self,
        engine: TiersEngine,
        judges: Judges,
        ways: Sequence[Way],
        narrow: TiersEngine | None = None,
    ) -> None:
        self._engine, self._judges = engine, judges
        self._narrow = narrow or engine
        self._features = RandomFeatures(engine.placement.device)
        self._found = [WayResults(way) for way in ways]
        self._anchors: Mapping[str, float] = {}
        assert ways[0].tier == LOSSLESS

    def block(self, scenes: Sequence[Scene], first: int) -> None:
        """Draw one more block; seeds follow from `first`, the number of its first prompt."""
        seeded = [(FIRST_SEED + first + i, scene) for i, scene in enumerate(scenes)]
        exact: list[Pixels] = []
        verdicts = []
        for found in self._found:
            pictures = self._draw(seeded, found)
            verdicts.append(self._judges.read(pictures, scenes))
            exact = exact or pictures
            pairs = zip(exact, pictures, strict=True)
            found.psnr_db += [psnr_db(one, other) for one, other in pairs]
            found.distance += self._features.distances(exact, pictures).tolist()
        self._anchors = self._anchors or anchors(exact, self._features.distances)
        for found, verdict in zip(self._found, verdicts, strict=True):
            found.right += verdict.wait()

    def _draw(self, seeded: Sequence[tuple[int, Scene]], found: WayResults) -> list[Pixels]:
        engine = self._narrow if found.way.fp8_conditioning else self._engine
        calls, started = engine.calls_so_far, time.monotonic()
        pictures = engine.draw(engine.works(seeded, found.way))
        found.seconds += time.monotonic() - started
        found.calls += engine.calls_so_far - calls
        return pictures

    def report(self) -> dict[str, Any]:
        form_of = self._engine.limits.tiers.form_of
        rows = {
            found.way.name: found.row(self._found[0]) | {"form_of_weights": form_of(found.way.tier)}
            for found in self._found
        }
        return {
            "prompts": len(self._found[0].right),
            "tiers": rows,
            "distance_of": {name: round(value, 5) for name, value in self._anchors.items()},
        }


def ways_for(tiers: Sequence[str], plans: Sequence[int], *, has_narrow: bool = False) -> list[Way]:
    """Lossless first, then the other tiers, then turbo with so many model calls each, and then the
    tiers with fp8 conditioning."""
    named = [Way(tier, tier) for tier in TIERS if tier in {*tiers, LOSSLESS}]
    plain = named + [Way(f"turbo of {calls}", TURBO, calling(calls)) for calls in plans]
    narrow = [
        Way(f"{way.tier}, fp8 conditioning", way.tier, fp8_conditioning=True)
        for way in named[1:]
        if has_narrow
    ]
    return plain + narrow


def about(engine: TiersEngine, commit: str | None) -> dict[str, Any]:
    place = engine.placement
    name = torch.cuda.get_device_name(place.device) if place.is_cuda else platform.machine()
    return {
        "steps": STEPS, "guidance": GUIDANCE, "size": f"{SIDE}x{SIDE}", "t5_tokens": NUM_TOKENS,
        "slots": engine.engine.slots, "scenes": f"evaluation_scenes(seed={SCENES_SEED}), held out",
        "seeds": f"{FIRST_SEED} + number of the prompt",
        "device": str(place.device), "hardware": name, "cpu_cores": len(os.sched_getaffinity(0)),
        "precision": place.precision, "compile": place.compile, "torch": torch.__version__,
        "commit": commit or _commit(),
        "methods": {"interval_95": SHARE_METHOD, "difference_interval_95": DIFFERENCE_METHOD,
                    "distance": DISTANCE_METHOD,
                    "model_calls_per_picture": "counted by predictors_denoise_steps_total",
                    "seconds_per_picture": "wall clock of all turns, many pictures at once, "
                    "prompts encoded in the first tier and cached for the others"},
    }  # fmt: skip


def print_table(report: Mapping[str, Any]) -> None:
    for name, row in report["tiers"].items():
        low, high = row["interval_95"]
        print(f"{name:12} {row['share']:7.2%} right [{low:.2%}, {high:.2%}]"
              f"  {row['model_calls_per_picture']:g} calls"
              f"  {1e3 * row['seconds_per_picture']:.1f} ms", end="")  # fmt: skip
        if "difference_points" in row:
            low, high = row["difference_interval_95"]
            print(f"  {row['difference_points']:+.2f} points [{low:+.2f}, {high:+.2f}]"
                  f" (-{row['only_lossless_right']} +{row['only_this_right']})"
                  f"  PSNR {row['psnr_db_mean']} dB, 5 %: {row['psnr_db_5th_percentile']}"
                  f"  distance {row['distance_mean']}", end="")  # fmt: skip
        print()
    for name, value in report["distance_of"].items():
        print(f"distance of {name}: {value}")


def main(arguments: Sequence[str] | None = None) -> None:
    args = _read_arguments(arguments)
    started = time.monotonic()
    ways = ways_for(args.tiers.split(","), args.plans, has_narrow=args.fp8_conditioning)
    tiers = dict.fromkeys(way.tier for way in ways)
    scenes = evaluation_scenes(args.prompts, seed=SCENES_SEED)
    with Judges(args.workers) as judges:
        engine = open_engine(args.device, list(tiers), args.slots, args.threads)
        head = about(engine, args.commit)
        print(f"warm after {time.monotonic() - started:.0f} s", flush=True)
        narrow = None
        if args.fp8_conditioning:
            fast = [tier for tier in tiers if tier != LOSSLESS]
            choice = {"conditioning_precision": "fp8"}
            narrow = open_engine(args.device, fast, args.slots, args.threads, **choice)
        comparison = TierComparison(engine, judges, ways, narrow)
        for first in range(0, args.prompts, args.block):
            before = time.monotonic()
            comparison.block(scenes[first : first + args.block], first)
            report = head | {"asked_for": args.prompts} | comparison.report()
            spent = time.monotonic() - started
            write_json(args.out, report | {"seconds": round(spent, 1)})
            print(f"{report['prompts']} of {args.prompts} prompts, {spent:.0f} s", flush=True)
            if spent + (time.monotonic() - before) > args.budget:
                break  # another block would not fit
    print_table(report)


def _read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--prompts", type=int, default=2400)
    add("--tiers", default=",".join(TIERS), help="beside lossless, comma-separated")
    add("--plans", type=lambda text: [int(k) for k in text.split(",")], default=[],
        help="model calls of further turbos, comma-separated")  # fmt: skip
    add("--fp8-conditioning", action="store_true",
        help="also the tiers with T5 and the modulation in fp8")  # fmt: skip
    add("--device", default="auto", help="as the setting compute.device")
    add("--slots", type=int, default=16, help="pictures in the making at once")
    add("--block", type=int, default=BLOCK, help="prompts between two writes of the JSON")
    add("--budget", type=float, default=float("inf"), help="seconds in all; no block begins later")
    add("--workers", type=int, default=0, help="processes that judge; 0 is one per core")
    add("--threads", type=int, default=0, help="of torch on the CPU; 0 is its own")
    add("--commit", help="for a machine without the repository")
    add("--out", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def _commit() -> str | None:
    try:
        asked = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _quantile(values: Sequence[float], share: float, digits: int) -> float | None:
    return round(float(np.quantile(values, share)), digits) if values else None


if __name__ == "__main__":
    main()
