"""Memory of a GPU that a full-size FLUX.1-dev takes, by tiers: while loading, while warming, and at
the peak of a 1024x1024 picture, with random weights that are made on the device when they are read.

`python -m benchmarks.flux.memory` writes `results/flux_memory.json`. Each row is a process of its
own, with torch's allocator limited to `--limit` GiB: a row that does not fit fails, and says so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import paths
from benchmarks.common.clock import GIB, Clock
from benchmarks.common.machine import machine
from benchmarks.common.run import write_json
from benchmarks.flux import random_weights
from benchmarks.flux.cases import GUIDANCE, PROMPT, SEED
from benchmarks.flux.ours import Drawing, assemble, placement_for
from predictors.diffusion.request import ImageParameters
from predictors.models.flux.model import FluxModel
from predictors.settings import FluxSettings

RESULTS = paths.RESULTS / "flux_memory.json"
SIDE, STEPS, REPEATS = 1024, 28, 5
CASES = (
    ("high,turbo", "fp8"),
    ("high,turbo", "auto"),
    ("turbo", "auto"),
    ("lossless", "auto"),
    ("lossless,high,turbo", "auto"),
)
"""Tiers, and `flux.conditioning_precision`."""


class DrawnWeights:
    """A component's tensors as the loader's `Source`: random, made where and when they are read."""

    def __init__(self, state: Mapping[str, Tensor], generator: torch.Generator) -> None:
        self._state = state
        self._generator = generator

    def __contains__(self, name: str) -> bool:
        return name in self._state

    def shape(self, name: str) -> Sequence[int]:
        return self._state[name].shape

    def copy_into(self, pairs: Iterable[tuple[Tensor, str]]) -> None:
        for target, name in pairs:
            assert target.shape == self._state[name].shape, name
            target.copy_(random_weights._draw(name, target.shape, target.dtype, self._generator))


@dataclass(frozen=True, slots=True)
class Asked:
    tiers: str
    conditioning: str
    device: str
    limit_gib: float
    is_toy: bool


def measured(asked: Asked, folder: Path) -> dict[str, Any]:
    """One row, in this process."""
    placement = placement_for(torch.device(asked.device))
    clock = Clock(placement.device)
    if clock.is_cuda:
        total = torch.cuda.get_device_properties(placement.device).total_memory
        torch.cuda.set_per_process_memory_fraction(asked.limit_gib * GIB / total)
    changes = (random_weights.TOY if asked.is_toy else random_weights.FULL,)
    model = model_in(random_weights.write_folder(folder / "dev", *changes), placement.device)
    side = 64 if asked.is_toy else SIDE
    size = f"{side}x{side}"
    settings = FluxSettings(
        sizes=size,
        default_size=size,
        tiers=asked.tiers,
        conditioning_precision=asked.conditioning,
    )
    made = assemble(model, settings, placement, "bench")
    clock.reset_peak()
    load_s, _ = clock.seconds(made.engine.load)
    loading, weights = clock.peak_bytes() or 0, clock.held_bytes()
    clock.reset_peak()
    warm_s, _ = clock.seconds(lambda: made.engine.warm(lambda *_: None))
    warming = clock.peak_bytes() or 0
    rows: dict[str, Any] = {}
    for tier in made.limits.tiers.loaded:
        clock.reset_peak()
        parameters = ImageParameters(
            PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE, seed=SEED, tier=tier
        )
        work = made.preparer.prepare(made.limits.resolve(parameters))

        def draw(work: Any = work) -> Drawing:
            job = Drawing(work)
            assert made.engine.admit(job)
            while not job.done:
                made.engine.step(made.engine.active)
            return job

        draw()
        seconds, job = clock.seconds(draw)
        assert job.error is None, job.error
        rows[tier] = {"s": round(seconds, 4), "peak_gib": gib(clock.peak_bytes() or 0)}
    runner, prompt = made.engine.runner, work.prompts[0]
    with torch.inference_mode():
        embedding = runner.encode(prompt)
        encode = clock.device_ms(lambda: runner.encode(prompt), REPEATS)
        start = clock.device_ms(lambda: runner.start(work.plan, [embedding], work.form), REPEATS)
    used = reserved = 0
    if clock.is_cuda:
        free, total = torch.cuda.mem_get_info(placement.device)
        used, reserved = total - free, torch.cuda.max_memory_reserved(placement.device)
    return {
        "load_s": round(load_s, 2),
        "warm_s": round(warm_s, 2),
        "peak_while_loading_gib": gib(loading),
        "peak_while_warming_gib": gib(warming),
        "weights_gib": gib(weights),
        "most_reserved_gib": gib(reserved),
        "device_used_gib": gib(used),
        "tiers": rows,
        "text_encoders_ms": round(encode.median, 3),
        "modulations_and_noise_ms": round(start.median, 3),
        "captures_after_ready": made.engine.describe()["captures_after_ready"],
    }


def model_in(folder: Path, device: torch.device) -> FluxModel:
    """The checkpoint of `folder`'s configs with weights that take no memory until they are read."""
    shells = random_weights.shells(folder)
    names = {"vae": "vae", "text_encoder": "clip", "text_encoder_2": "t5"}
    generator = torch.Generator(device).manual_seed(random_weights.SEED)

    def opened(part: str) -> AbstractContextManager[DrawnWeights]:
        return nullcontext(DrawnWeights(shells[names.get(part, part)].state_dict(), generator))

    return FluxModel(folder, opened)


def gib(num_bytes: int) -> float:
    return round(num_bytes / GIB, 2)


def in_own_process(tiers: str, conditioning: str, asked: argparse.Namespace) -> dict[str, Any]:
    options = ["--one", f"{tiers}:{conditioning}", "--device", asked.device]
    options += ["--limit", str(asked.limit)] + (["--toy"] if asked.toy else [])
    command = [sys.executable, "-m", "benchmarks.flux.memory", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1][:300]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--device", default="cuda:0")
    add("--limit", type=float, default=130.0, help="GiB that torch may take")
    add("--limit-of-first", type=float, default=23.0, help="the same for the first row")
    add("--toy", action="store_true", help="the embedded checkpoint's size, also on a CPU")
    add("--one", help="TIERS:CONDITIONING, in this process")
    add("--out", type=Path, default=RESULTS)
    asked = parser.parse_args(arguments)
    if asked.one:
        tiers, _, conditioning = asked.one.partition(":")
        one = Asked(tiers, conditioning, asked.device, asked.limit, asked.toy)
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measured(one, Path(folder))))
        return
    report: dict[str, Any] = {
        "machine": machine(device=asked.device),
        "size": f"{SIDE}x{SIDE}",
        "steps": STEPS,
        "rows": [],
    }
    whole = asked.limit
    for number, (tiers, conditioning) in enumerate(CASES):
        asked.limit = whole if number else asked.limit_of_first
        row = {"tiers": tiers, "conditioning_precision": conditioning, "limit_gib": asked.limit}
        row = {"asked": row} | in_own_process(tiers, conditioning, asked)
        report["rows"].append(row)
        write_json(asked.out, report)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
