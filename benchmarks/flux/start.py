"""Cold and warm start: the engine in a fresh process without any cache on disk, then in another one
with the caches that the first left.

`python -m benchmarks.flux.start FOLDER SIZES TIERS DEVICE CACHES` is the child: it makes the random
weights (not counted: a real start reads them), loads, warms, draws a picture, prints a line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

OTHERS = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")  # would win over `compute.cache_dir`
PHASES = ("predictors_model_phase_seconds", "predictors_start_compilations")


def measure(folder: Path, sizes: str, tiers: str, device: str) -> dict[str, Any]:
    """Both starts, one after the other, and the warm one's share of the cold warm-up."""
    with tempfile.TemporaryDirectory(prefix="flux-start-") as caches:
        cold, warm = (_child(folder, sizes, tiers, device, caches) for _ in range(2))
    found = {"cold": cold, "warm": warm, "warm_share_of_cold": warm["warm_s"] / cold["warm_s"]}
    if compiling := cold["phases"].get("compile"):
        found["compile_share_of_cold"] = warm["phases"]["compile"] / compiling
    return found


def _child(folder: Path, sizes: str, tiers: str, device: str, caches: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.flux.start", str(folder), sizes, tiers, device]
    own = {name: value for name, value in os.environ.items() if name not in OTHERS}
    own["CUDA_CACHE_PATH"] = f"{caches}/cuda"
    started = time.perf_counter()
    done = subprocess.run(
        [*command, caches], env=own, stdout=subprocess.PIPE, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result | {"process_s": time.perf_counter() - started}


def start(folder: Path, sizes: str, tiers: str, device: str, caches: str) -> dict[str, Any]:
    began = time.perf_counter()
    import torch

    from benchmarks.flux.cases import Case
    from benchmarks.flux.ours import Ours, placement_for, settings_for
    from benchmarks.flux.random_weights import make
    from predictors.compute.device.placement import keep_code
    from predictors.settings import ComputeSettings

    keep_code(ComputeSettings(device=device, cache_dir=caches), os.environ)
    placement = placement_for(torch.device(device), caches)
    ours_began = time.perf_counter()
    models = make(folder, placement.device, placement.dtype)
    made = time.perf_counter()
    ours = Ours(models, placement, settings_for(sizes, tiers))
    opening = ours.open()
    width, _, height = sizes.split(",")[0].partition("x")
    case = Case("dev", int(width), int(height), steps=4)
    drawn = ours.draw(case, ours.tiers[0])
    return {
        "import_s": ours_began - began,
        "random_weights_s": made - ours_began,
        "load_s": opening.load_s,
        "warm_s": opening.warm_s,
        "first_picture_s": drawn.seconds,
        "phases": phases(),
    }


def phases() -> dict[str, float]:
    """From the engine's metrics: seconds by phase, compilations by source."""
    from prometheus_client import REGISTRY

    found = {}
    for family in REGISTRY.collect():
        if family.name in PHASES:
            for sample in family.samples:
                found[sample.labels.get("phase") or sample.labels["source"]] = sample.value
    return found


if __name__ == "__main__":
    print(json.dumps(start(Path(sys.argv[1]), *sys.argv[2:6])))
