"""A start with `flux.warm` all or minimal: seconds until ready, of a picture whose shape is not yet
warm, and of each shape that is warmed beside a picture; memory; pictures that are not as later.

`python -m benchmarks.flux.warm minimal`, and `all` in another process, print one JSON object.
`--toy` runs the same code at the embedded checkpoint's size, also on a CPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common.clock import Clock
from benchmarks.common.later_warm_ups import warm_the_rest
from benchmarks.flux.cases import Case
from benchmarks.flux.ours import Drawing, Ours, placement_for, settings_for
from benchmarks.flux.random_weights import FULL, TOY, make, write_folder

SIZES, TOY_SIZES = "1024x1024,512x512,768x1344", "64x64,96x64"
TIERS = "lossless,high,turbo"
STEPS, TOY_STEPS = 28, 6
BEFORE = 2
"""Steps of a picture before a shape is warmed beside it."""


def measure(
    folder: Path, warm: str, sizes: str, tiers: str, steps: int, device: str
) -> dict[str, Any]:
    placement = placement_for(torch.device(device))
    models = make(folder, placement.device, placement.dtype)
    clock, is_cuda = Clock(placement.device), placement.device.type == "cuda"
    one = Ours(models, placement, replace(settings_for(sizes, tiers), warm=warm))
    opening, tier = one.open(), one.limits.tiers.default
    at_ready = torch.cuda.memory_reserved() if is_cuda else None
    first, *_, last = cases(one, sizes, steps)
    found: dict[str, Any] = {
        "warm": warm,
        "load_s": opening.load_s,
        "warm_s": opening.warm_s,
        "captured": opening.num_graphs,
        "shapes_at_ready": one.engine.plan.counts if one.engine.plan else None,
        "default_picture_s": one.draw(first, tier).seconds,
        "picture_of_another_size_s": one.draw(last, tier).seconds,
    }
    beside = Beside(one, first, tier)
    if one.engine.plan is not None:
        found["later"] = warm_the_rest(one.engine.plan, clock, beside.begin, beside.finish)
        found["failed"] = one.engine.plan.describe()["failed"]
    found["the_same_size_again_s"] = one.draw(last, tier).seconds
    found["pictures_beside"] = len(beside.pictures)
    found["other_pictures"] = beside.others(one.draw(first, tier).pixels[0])
    told = one.engine.describe()
    found["unplanned"] = told["recompilations_after_ready"], told["captures_after_ready"]
    found["reserved_bytes"] = at_ready, torch.cuda.memory_reserved() if is_cuda else None
    one.close()
    return found


def cases(one: Ours, sizes: str, steps: int) -> list[Case]:
    """A picture of the default size, and of each other promised size."""
    default = one.limits.default_width, one.limits.default_height
    asked = [tuple(map(int, size.split("x"))) for size in sizes.split(",")]
    others = [size for size in asked if size != default]
    return [Case("dev", width, height, steps) for width, height in (default, *others)]


class Beside:
    """Pictures of one case, drawn while shapes are warmed."""

    def __init__(self, one: Ours, case: Case, tier: str) -> None:
        self._one, self._case, self._tier = one, case, tier
        self.pictures: list[Any] = []

    def begin(self) -> list[Drawing]:
        jobs = self._one.admit(self._case, self._tier)
        for _ in range(BEFORE):
            self._one.engine.step(self._one.engine.active)
        return jobs

    def finish(self, jobs: list[Drawing]) -> None:
        self._one.drive(jobs)
        self.pictures += [picture for job in jobs for picture in job.pixels]

    def others(self, expected: Any) -> int:
        """How many of the pictures are not `expected`, to the bit."""
        return sum(not np.array_equal(picture, expected) for picture in self.pictures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("warm", choices=("all", "minimal"))
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--sizes")
    parser.add_argument("--tiers", default=TIERS)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()
    sizes = asked.sizes or (TOY_SIZES if asked.toy else SIZES)
    steps = TOY_STEPS if asked.toy else STEPS
    with tempfile.TemporaryDirectory(prefix="flux-warm-") as scratch:
        folder = write_folder(Path(scratch, "dev"), TOY if asked.toy else FULL)
        found = measure(folder, asked.warm, sizes, asked.tiers, steps, asked.device)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
