"""What the quality tiers cost in quality: held-out prompts drawn by this engine in every tier with
the same seeds, read by a checker of rules, and compared picture by picture. Knows no server.

`python -m benchmarks.flux_tiers` compares the tiers and writes `results/flux_tiers.json`;
`... plans` compares ways to skip model calls (see `flux_tiers_plans`). Both take --count and
--device; nothing here imports KServe, so a GPU machine need not have it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.flux_tiers_likeness import (
    Pixels,
    RandomFeatures,
    anchors,
    difference_interval,
    psnr_db,
    share_interval,
)
from benchmarks.flux_tiers_plans import compare_plans
from checkpoints.training import checker
from checkpoints.training.scenes import Scene, caption, evaluation_scenes
from predictors.compute.device import Placement, place
from predictors.flux.engine import FluxEngine, FluxJob
from predictors.flux.facts import read_facts
from predictors.flux.inputs import FluxWork, Preparer
from predictors.flux.offer import make_offer
from predictors.flux.request import LOSSLESS, Offer, Wish
from predictors.serving.job import Job
from predictors.settings import ComputeSettings, FluxSettings

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "checkpoints" / "shapes-flux"
RESULTS = Path(__file__).with_name("results")
SIDE = 128
NUM_TOKENS = 64  # what the checkpoint was trained on
STEPS = 28
GUIDANCE = 3.5
SCENES_SEED = 1  # as `checkpoints.training.evaluate`
FIRST_SEED = 1000
GOAL_POINTS = -1.0
SETTINGS: dict[str, Any] = {
    "sizes": f"{SIDE}x{SIDE}",
    "default_size": f"{SIDE}x{SIDE}",
    "max_sequence_length": NUM_TOKENS,
    "default_steps": STEPS,
}


@dataclass(frozen=True, slots=True)
class Room:
    """The engine of the embedded checkpoint, warm."""

    placement: Placement
    offer: Offer
    preparer: Preparer
    engine: FluxEngine

    def works(self, scenes: Sequence[Scene], tier: str) -> Iterable[FluxWork]:
        """One picture of each scene; the seed is the scene's number in every tier."""
        for number, scene in enumerate(scenes):
            wish = Wish(
                caption(scene), seed=FIRST_SEED + number, guidance_scale=GUIDANCE, tier=tier
            )
            yield self.preparer.prepare(self.offer.request(wish))

    def draw(self, works: Iterable[FluxWork]) -> list[Pixels]:
        """All pictures, in order, as many at once as there are slots."""
        return asyncio.run(self._draw(works))

    async def _draw(self, works: Iterable[FluxWork]) -> list[Pixels]:
        engine, drawn = self.engine, list[Pixels]()
        source, under_way = iter(works), deque[FluxJob]()
        is_over = False
        while not is_over or under_way:
            while not is_over and len(engine.active) < engine.slots:
                work = next(source, None)
                if work is None:
                    is_over = True
                else:
                    under_way.append(Job(str(len(drawn)), work))
                    engine.admit(under_way[-1])
            engine.step(engine.active)
            while under_way and under_way[0].done:
                drawn += [chunk.pixels async for chunk in under_way.popleft().stream()]
        return drawn


def open_room(device: str, tiers: str) -> Room:
    """Loaded and warmed; `tiers` as the setting `flux.tiers`."""
    placement = place(ComputeSettings(device=device))
    settings = FluxSettings(**SETTINGS, tiers=tiers)
    facts, tokenizers = read_facts(CHECKPOINT)
    offer = make_offer(facts, settings, placement.device)
    preparer = Preparer(facts, tokenizers, placement.dtype, offer.tiers)
    engine = FluxEngine("tiers", facts, offer, preparer, settings, placement)
    engine.load()
    engine.warm(lambda *_: None)
    return Room(placement, offer, preparer, engine)


def compare_tiers(room: Room, count: int) -> dict[str, Any]:
    """Every loaded tier beside lossless, paired by prompt and seed."""
    scenes = evaluation_scenes(count, seed=SCENES_SEED)
    pictures: dict[str, list[Pixels]] = {}
    seconds: dict[str, float] = {}
    for tier in room.offer.tiers.loaded:
        started = time.monotonic()
        pictures[tier] = room.draw(room.works(scenes, tier))
        seconds[tier] = time.monotonic() - started
        print(f"{tier}: {count} pictures in {seconds[tier]:.0f} s", flush=True)
    right = {tier: _read_right(drawn, scenes) for tier, drawn in pictures.items()}
    features = RandomFeatures(room.placement.device)
    rows = {}
    for tier, drawn in pictures.items():
        rows[tier] = share_row(right[tier]) | {"seconds": round(seconds[tier], 1)}
        if tier != LOSSLESS:
            rows[tier] |= difference_row(right[LOSSLESS], right[tier])
            rows[tier] |= likeness_row(pictures[LOSSLESS], drawn, features)
    return {
        "prompts": count,
        "steps": STEPS,
        "guidance": GUIDANCE,
        "tiers": rows,
        "distance_of": anchors(pictures[LOSSLESS], features.distances),
    }


def share_row(right: Sequence[bool]) -> dict[str, Any]:
    """The share drawn right and its interval."""
    low, high = share_interval(sum(right), len(right))
    return {
        "right": sum(right),
        "share": round(sum(right) / len(right), 4),
        "interval_95": [round(low, 4), round(high, 4)],
    }


def difference_row(lossless: Sequence[bool], tier: Sequence[bool]) -> dict[str, Any]:
    """By how many points more prompts are drawn right than in lossless."""
    low, high = (100 * bound for bound in difference_interval(lossless, tier))
    pairs = list(zip(lossless, tier, strict=True))
    return {
        "only_lossless_right": sum(a and not b for a, b in pairs),
        "only_this_right": sum(b and not a for a, b in pairs),
        "difference_points": round(100 * (sum(tier) - sum(lossless)) / len(pairs), 3),
        "difference_interval_95": [round(low, 3), round(high, 3)],
        "holds_goal": low > GOAL_POINTS,
    }


def likeness_row(
    lossless: Sequence[Pixels], drawn: Sequence[Pixels], features: RandomFeatures
) -> dict[str, Any]:
    """How far the pictures are from those of lossless."""
    ratios = [psnr_db(a, b) for a, b in zip(lossless, drawn, strict=True)]
    finite = [ratio for ratio in ratios if np.isfinite(ratio)]
    apart = features.distances(lossless, drawn)
    return {
        "identical": len(ratios) - len(finite),
        "psnr_db_mean": round(statistics.fmean(finite), 2) if finite else None,
        "psnr_db_5_percent": round(float(np.quantile(finite, 0.05)), 2) if finite else None,
        "distance_mean": round(float(apart.mean()), 5),
        "distance_95_percent": round(float(np.quantile(apart, 0.95)), 5),
    }


def _read_right(pictures: Sequence[Pixels], scenes: Sequence[Scene]) -> list[bool]:
    found = [checker.read(Image.fromarray(picture)) for picture in pictures]
    return [read == scene for read, scene in zip(found, scenes, strict=True)]


def print_table(report: Mapping[str, Any]) -> None:
    """A line per tier."""
    for tier, row in report["tiers"].items():
        low, high = row["interval_95"]
        print(f"{tier:9} {row['share']:7.2%} right [{low:.1%}, {high:.1%}]", end="")
        if "difference_points" in row:
            low, high = row["difference_interval_95"]
            print(f"  {row['difference_points']:+.2f} points [{low:+.2f}, {high:+.2f}]"
                  f"  PSNR {row['psnr_db_mean']} dB (5 %: {row['psnr_db_5_percent']})"
                  f"  distance {row['distance_mean']}", end="")  # fmt: skip
        print()
    for name, value in report["distance_of"].items():
        print(f"distance of {name}: {value:.5f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("tiers", "plans"), default="tiers")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiers", default="auto", help="as the setting flux.tiers")
    parser.add_argument("--count", type=int, default=0, help="prompts; 0 is 2000, of plans 256")
    parser.add_argument("--threads", type=int, default=0, help="of torch on the CPU; 0 is its own")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.what == "plans":
        out = args.out or RESULTS / "flux_turbo_plans.json"
        report = compare_plans(CHECKPOINT, args.device, args.count or 256)
    else:
        out = args.out or RESULTS / "flux_tiers.json"
        room = open_room(args.device, args.tiers)
        report = compare_tiers(room, args.count or 2000) | {
            "device": str(room.placement.device),
            "precision": room.placement.precision,
        }
        print_table(report)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report | {"torch": torch.__version__}, indent=1) + "\n")


if __name__ == "__main__":
    main()
