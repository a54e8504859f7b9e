"""Cold and warm start: the engine opened in a fresh process without any cache on disk, then in
another one with what the first left there. Knows environment variables and seconds.

`python -m benchmarks.flux_start FOLDER SIZES TIERS DEVICE` is the child: it makes the random
weights (not counted: a real start reads them), loads, warms, draws one picture, prints one line.
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

CACHES = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "CUDA_CACHE_PATH": "cuda",
}


def measure(folder: Path, sizes: str, tiers: str, device: str) -> dict[str, Any]:
    """Both starts, one after the other, and how much of the cold warm-up the warm one needs."""
    with tempfile.TemporaryDirectory(prefix="flux-start-") as caches:
        places = {name: f"{caches}/{leaf}" for name, leaf in CACHES.items()}
        cold = _child(folder, sizes, tiers, device, places)
        warm = _child(folder, sizes, tiers, device, places)
    share = warm["warm_s"] / cold["warm_s"]
    return {"cold": cold, "warm": warm, "warm_share_of_cold": share}


def _child(
    folder: Path, sizes: str, tiers: str, device: str, places: dict[str, str]
) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.flux_start", str(folder), sizes, tiers, device]
    started = time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, **places}, stdout=subprocess.PIPE, text=True, check=True
    )
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told | {"process_s": time.perf_counter() - started}


def start(folder: Path, sizes: str, tiers: str, device: str) -> dict[str, float]:
    """What the child does."""
    began = time.perf_counter()
    import torch

    from benchmarks.flux_cases import Case
    from benchmarks.flux_ours import Ours, placement_for, settings_for
    from benchmarks.flux_random import make

    placement = placement_for(torch.device(device))
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
    }


if __name__ == "__main__":
    print(json.dumps(start(Path(sys.argv[1]), *sys.argv[2:5])))
