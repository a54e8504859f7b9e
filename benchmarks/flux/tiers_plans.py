"""Plans for turbo, which choose the steps that call the model, and own schedules with as few steps,
beside calling it at all 28.

Distances are of the latents after the last step, ||x - y|| / ||y||: to those of all 28 calls (what
turbo stands in for) and to a finer schedule (what both stand in for). `python -m
benchmarks.flux.tiers_plans` writes `results/flux_turbo_plans.json` after each of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.common import paths
from benchmarks.common.run import write_json
from benchmarks.flux.ours import assemble
from checkpoints.training import checker
from checkpoints.training.scenes import Scene, caption, evaluation_scenes
from predictors.compute.device.placement import place
from predictors.diffusion.inputs import DiffusionWork
from predictors.diffusion.latents import DenoiseState
from predictors.diffusion.model import Embedding, LoadOptions
from predictors.diffusion.request import BASE, ImageParameters
from predictors.diffusion.runner import DiffusionRunner
from predictors.diffusion.sampling import DenoisePlan, Schedule, plan_calls, update_coefficients
from predictors.models.flux.model import FluxModel
from predictors.settings import ComputeSettings, FluxSettings

STEPS = 28
FINE_STEPS = 84
CALLS = (12, 14, 16, 17)
SIDE = 128
NUM_TOKENS = 64
GUIDANCE = 3.5
SCENES_SEED, FIRST_SEED = 3, 5000  # prompts that the comparison of tiers does not use
BATCH = 32
# dense at the start, dense at the end, the rest evenly between: by step, and by noise level
BY_STEP = ((1, 1), (3, 2), (3, 4), (5, 1), (7, 1))
BY_LEVEL = ((1, 1), (3, 2))
BEST = (5, 1)  # of the even ones
# how many gaps of one step, of two, ...: growing one by one from the first step to the last
GROWING = {12: (4, 2, 1, 4), 14: (5, 2, 6), 16: (7, 4, 4), 17: (7, 7, 2)}
CHECKPOINT = paths.SHAPES_FLUX
RESULTS = paths.RESULTS / "flux_turbo_plans.json"


@dataclass(frozen=True, slots=True)
class Way:
    """Model calls at `sigmas[:-1]`, and x' = x + A * v_last + B * v_before after each."""

    name: str
    sigmas: NDArray[np.float32]
    """(K + 1,)."""
    pairs: NDArray[np.float32]
    """(K, 2)."""
    called: str = ""
    """A mark per step of the 28, `x` where the model is called."""

    @property
    def num_calls(self) -> int:
        return len(self.pairs)


def ways(schedule: Schedule, num_patches: int) -> Iterator[Way]:
    levels = schedule.sigmas(STEPS, num_patches)
    for num_calls in CALLS:
        seen = set[tuple[bool, ...]]()
        plans = [(f"by step {f}+{e}", even_steps(num_calls, f, e)) for f, e in BY_STEP]
        plans += [(f"by level {f}+{e}", even_levels(levels, num_calls, f, e)) for f, e in BY_LEVEL]
        plans.append(("growing gaps", growing(GROWING[num_calls])))
        for name, called in plans:
            if called not in seen and sum(called) == num_calls:
                seen.add(called)
                yield skipping(name, levels, called)
        own = schedule.sigmas(num_calls, num_patches)
        yield skipping("own schedule, Euler", own, (True,) * num_calls)
        yield Way("own schedule, Adams-Bashforth 2", own, adams_bashforth(own))
    yield skipping("turbo", levels, plan_calls(STEPS))


def skipping(name: str, levels: NDArray[np.float32], called: Sequence[bool]) -> Way:
    marks = "".join(".x"[is_call] for is_call in called)
    return Way(name, levels[[*called, True]], update_coefficients(levels, called), marks)


def calling(num_calls: int) -> Callable[[int], tuple[bool, ...]]:
    """A plan of `num_calls` calls for `STEPS` steps, the rest as the plan in use."""
    if not sum(BEST) <= num_calls <= STEPS:
        raise ValueError(f"a plan has from {sum(BEST)} to {STEPS} calls, not {num_calls}")
    placed = even_steps(num_calls, *BEST)
    return lambda num_steps: placed if num_steps == STEPS else plan_calls(num_steps)


def even_steps(num_calls: int, first: int, last: int) -> tuple[bool, ...]:
    """The `first` and `last` of the steps, and others with even gaps."""
    calls = {*range(first), *range(STEPS - last, STEPS)}
    between = np.linspace(first - 1, STEPS - last, num_calls - first - last + 2)[1:-1]
    calls |= {round(float(place)) for place in between}
    return tuple(i in calls for i in range(STEPS))


def growing(counts: Sequence[int]) -> tuple[bool, ...]:
    """From the first step on `counts[0]` gaps of one step, `counts[1]` of two, ..."""
    gaps = np.repeat(np.arange(1, len(counts) + 1), counts)
    calls = {0, *np.cumsum(gaps).tolist()}
    return tuple(i in calls for i in range(STEPS))


def even_levels(
    levels: NDArray[np.float32], num_calls: int, first: int, last: int
) -> tuple[bool, ...]:
    """As `even_steps`, with even gaps of the noise level."""
    calls = {*range(first), *range(STEPS - last, STEPS)}
    targets = np.linspace(levels[first - 1], levels[STEPS - last], num_calls - first - last + 2)
    for target in targets[1:-1]:
        free = [i for i in range(STEPS) if i not in calls]
        calls.add(min(free, key=lambda i: abs(float(levels[i] - target))))
    return tuple(i in calls for i in range(STEPS))


def adams_bashforth(levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Coefficients of the second-order method with steps of any length, (K, 2)."""
    steps = np.diff(levels.astype(np.float64))
    half_ratio = np.append(0.0, steps[1:] / (2 * steps[:-1]))
    return np.stack((steps * (1 + half_ratio), -steps * half_ratio), 1).astype(np.float32)


class Sampler:
    """Passes of the embedded checkpoint over many prompts at once, in base weights."""

    def __init__(self, checkpoint: Path, device: str, count: int) -> None:
        self._place = place(ComputeSettings(device=device, compile="off"))
        settings = FluxSettings(
            sizes=f"{SIDE}x{SIDE}",
            default_size=f"{SIDE}x{SIDE}",
            max_sequence_length=NUM_TOKENS,
            tiers="lossless",
        )
        model = FluxModel(checkpoint)
        made = assemble(model, settings, self._place, "plans")
        limits, preparer = made.limits, made.preparer
        self.schedule = model.schedule
        self.scenes: list[Scene] = evaluation_scenes(count, seed=SCENES_SEED)
        self._works = [
            preparer.prepare(
                limits.resolve(
                    ImageParameters(caption(scene), seed=FIRST_SEED + i, guidance_scale=GUIDANCE)
                )
            )
            for i, scene in enumerate(self.scenes)
        ]
        options = LoadOptions((BASE,), limits.longest_sequence, fp8_attention=False)
        passes = model.load("plans", self._place, options)
        self._runner = DiffusionRunner("plans", passes, self._place, limits, BATCH)
        with torch.inference_mode():
            self._prompts = [self._encode(work) for work in self._works]

    def _encode(self, work: DiffusionWork) -> Embedding:
        return self._runner.encode(work.prompts[0])

    @property
    def num_patches(self) -> int:
        return self._works[0].plan.rows * self._works[0].plan.columns

    def draw(self, way: Way) -> list[DenoiseState]:
        with torch.inference_mode():
            canvases = [
                self._runner.start(self._plan(work.plan, way), [prompt], BASE)
                for work, prompt in zip(self._works, self._prompts, strict=True)
            ]
            for start in range(0, len(canvases), BATCH):
                group = canvases[start : start + BATCH]
                for _ in range(way.num_calls):
                    steps = self._runner.denoise(group, len(group))
                    for canvas, step in zip(group, steps, strict=True):
                        canvas.commit(step)
        return canvases

    def _plan(self, denoise_plan: DenoisePlan, way: Way) -> DenoisePlan:
        dtype = self._place.dtype
        return replace(
            denoise_plan,
            timesteps=self.schedule.timesteps(way.sigmas, dtype),
            dts=torch.from_numpy(way.sigmas).diff().to(dtype),
            coefficients=torch.from_numpy(way.pairs),
            num_steps=way.num_calls + 1,  # so that the coefficients count, not `dts`
        )

    def read_right(self, canvases: Sequence[DenoiseState]) -> list[bool]:
        with torch.inference_mode():
            pictures = [self._runner.decode(canvas).result().pixels for canvas in canvases]
        found = [checker.read(Image.fromarray(picture)) for picture in pictures]
        return [read == scene for read, scene in zip(found, self.scenes, strict=True)]


def compare_plans(device: str, count: int) -> Iterator[dict[str, Any]]:
    """The report, yielded after each further way."""
    sampler = Sampler(CHECKPOINT, device, count)
    schedule, num_patches = sampler.schedule, sampler.num_patches
    fine_levels = schedule.sigmas(FINE_STEPS, num_patches)
    fine = latents(sampler.draw(skipping("", fine_levels, (True,) * FINE_STEPS)))
    levels = schedule.sigmas(STEPS, num_patches)
    all_calls = skipping(f"all {STEPS}", levels, (True,) * STEPS)
    reference = latents(sampler.draw(all_calls))
    report = {
        "prompts": count,
        "steps": STEPS,
        "fine_steps": FINE_STEPS,
        "guidance": GUIDANCE,
        "size": f"{SIDE}x{SIDE}",
        "scenes": f"evaluation_scenes(seed={SCENES_SEED}), held out",
        "seeds": f"{FIRST_SEED} + number of the prompt",
        "device": device,
        "torch": torch.__version__,
        "distance": "of the last latents, ||x - y|| / ||y||, float32 sums",
    }
    rows: list[dict[str, Any]] = []
    for way in (all_calls, *ways(schedule, num_patches)):
        rows.append(_row(way, sampler.draw(way), reference, fine, sampler))
        yield report | {"ways": rows}


def latents(canvases: Sequence[DenoiseState]) -> Tensor:
    """(n, patches * channels) float32."""
    return torch.stack([canvas.latents for canvas in canvases]).flatten(1).float()


def distances(ones: Tensor, others: Tensor) -> Tensor:
    """(n,) relative distances of rows."""
    apart: Tensor = (ones - others).norm(dim=1) / others.norm(dim=1)
    return apart


def _row(
    way: Way, canvases: Sequence[DenoiseState], reference: Tensor, fine: Tensor, sampler: Sampler
) -> dict[str, Any]:
    drawn = latents(canvases)
    apart = distances(drawn, reference)
    right = sampler.read_right(canvases)
    row = {
        "name": way.name,
        "calls": way.num_calls,
        "called": way.called,
        "to_all_calls_mean": round(float(apart.mean()), 4),
        "to_all_calls_95_percent": round(float(apart.quantile(0.95)), 4),
        "to_fine_mean": round(float(distances(drawn, fine).mean()), 4),
        "right": sum(right),
    }
    print(*row.values(), sep="  ", flush=True)
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--device", default="auto", help="as the setting compute.device")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    for report in compare_plans(args.device, args.prompts):
        write_json(args.out, report)


if __name__ == "__main__":
    main()
