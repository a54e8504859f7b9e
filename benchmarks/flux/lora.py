"""The cost of adapters (LoRA) in a denoise step of a full-size FLUX.1-dev with random weights: one
picture and four, without adapters and with one or four of rank 16 and 64, in bfloat16 and fp8.

`python -m benchmarks.flux.lora` writes `results/flux_lora.json`; on a GPU it takes about four
minutes and 70 GiB. `--toy` runs the same code at the embedded checkpoint's size on any device: its
numbers mean nothing. Adapters change every linear of the step; adding one is timed too.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import paths
from benchmarks.common.clock import GIB, Clock
from benchmarks.common.machine import machine
from benchmarks.common.run import BenchmarkRun, read_arguments, run_parser
from benchmarks.common.stats import Spread
from benchmarks.flux import random_weights
from benchmarks.flux.cases import GUIDANCE, PROMPT, SEED
from benchmarks.flux.memory import model_in
from benchmarks.flux.ours import Assembly, assemble, placement_for
from predictors.compute.low_rank import AdapterWeights, LowRank
from predictors.diffusion.adapters import STEP
from predictors.diffusion.latents import DenoiseState
from predictors.diffusion.request import HIGH, LOSSLESS, ImageParameters, LoraScale
from predictors.models.flux.model import FluxModel
from predictors.models.flux.passes import FluxPasses
from predictors.settings import FluxSettings

RESULTS = paths.RESULTS / "flux_lora.json"
TOY_RESULTS = paths.SCRATCH / "flux-lora-toy.json"
RANKS, NUM_ADAPTERS, ROWS = (16, 64), 4, 4
GOAL = 1.08
"""Of a step with adapters of rank 64 beside one without."""
UP_SIZE = 1e-4  # of the random values: the activations stay those of the model


@dataclass(frozen=True, slots=True)
class Mix:
    """The adapters of each picture of a step."""

    name: str
    adapters: tuple[tuple[str, ...], ...]


def mixes() -> list[Mix]:
    def named(rank: int) -> list[str]:
        return [f"r{rank}-{i}" for i in range(NUM_ADAPTERS)]

    found = [Mix("1 picture, none", ((),))]
    found += [Mix(f"1 picture, 1 of rank {rank}", ((named(rank)[0],),)) for rank in RANKS]
    found.append(Mix("1 picture, 4 of rank 16", (tuple(named(16)),)))
    found.append(Mix(f"{ROWS} pictures, none", ((),) * ROWS))
    for rank in RANKS:
        first, *_ = names = named(rank)
        found.append(Mix(f"{ROWS} pictures, the same of rank {rank}", ((first,),) * ROWS))
        different = tuple((name,) for name in names)
        found.append(Mix(f"{ROWS} pictures, a different one of rank {rank} each", different))
    some = ((), (), *((name,) for name in named(16)[:2]))
    found.append(Mix(f"{len(some)} pictures, two without and two of rank 16", some))
    return found


def random_adapter(model: FluxModel, name: str, rank: int, device: torch.device) -> AdapterWeights:
    """Changes every linear of the step; made on the device, kept on the host."""
    generator = torch.Generator(device).manual_seed(SEED)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device=device).normal_(generator=generator).cpu()

    changes = {
        path: LowRank(drawn(rank, place.in_features), UP_SIZE * drawn(place.out_features, rank))
        for path, place in model.adapter_places().items()
        if place.stage == STEP
    }
    return AdapterWeights(name, name, changes)


class LoraRun:
    """One engine with room for all adapters, on the caller's thread."""

    def __init__(self, folder: Path, device: torch.device, *, is_toy: bool, tiers: str) -> None:
        changes = (random_weights.TOY if is_toy else random_weights.FULL,)
        self._placement = placement_for(device)
        self.clock = Clock(device)
        self._model = model_in(random_weights.write_folder(folder / "dev", *changes), device)
        size = "64x64" if is_toy else "1024x1024"
        settings = FluxSettings(
            sizes=size,
            default_size=size,
            tiers=tiers,
            slots=ROWS,
            max_sequence_length=16 if is_toy else 0,
            lora_max_active=NUM_ADAPTERS + NUM_ADAPTERS * RANKS[0] // RANKS[1],
            lora_max_rank=RANKS[1],
        )
        self._made: Assembly = assemble(self._model, settings, self._placement, "bench")
        self._repeats = 2 if is_toy else 12

    def open(self) -> dict[str, Any]:
        engine = self._made.engine
        load_s, _ = self.clock.seconds(engine.load)
        warm_s, _ = self.clock.seconds(lambda: engine.warm(lambda *_: None))
        passes = engine.runner.passes
        assert isinstance(passes, FluxPasses)
        held = sum(table.down.nbytes + table.up.nbytes for table in passes.tables.values())
        return {
            "load_s": round(load_s, 2),
            "warm_s": round(warm_s, 2),
            "captures": engine.runner.captures,
            "tables_gib": round(held / GIB, 3),
            "attention": passes.attention,
        }

    def add_all(self) -> dict[str, Any]:
        """Seconds of adding the first adapter of each rank, and the last of them."""
        found = {}
        for rank in RANKS:
            for i in range(NUM_ADAPTERS):
                weights = random_adapter(self._model, f"r{rank}-{i}", rank, self.clock.device)
                add = partial(self._made.engine.add_adapter, weights)
                seconds, _ = self.clock.seconds(add)
                if i in (0, NUM_ADAPTERS - 1):
                    found[f"rank {rank}, number {i + 1}"] = round(seconds, 3)
        return found

    def steps(self, tier: str) -> dict[str, Any]:
        """Device milliseconds of a step of each mix, at the width that was measured when warming;
        relative to the same pictures without adapters."""
        found: dict[str, Any] = {}
        plain: dict[int, Spread] = {}
        for mix in mixes():
            states = [self._state(tier, names) for names in mix.adapters]
            step = partial(self._made.engine.runner.denoise, states)
            with torch.inference_mode():
                took = self.clock.device_ms(step, self._repeats, 2)
            base = plain.setdefault(len(states), took)
            ratio = took.median / base.median
            found[mix.name] = {"ms": took, "ratio": round(ratio, 4)}
            print(f"  {tier}, {mix.name}: {took.median:.2f} ms, {ratio:.3f}", flush=True)
        found["captures_after_ready"] = self._made.engine.runner.captures_after_ready
        return found

    def _state(self, tier: str, names: Sequence[str]) -> DenoiseState:
        """A picture after its prompt was encoded."""
        parameters = ImageParameters(
            PROMPT,
            num_inference_steps=4,
            guidance_scale=GUIDANCE,
            seed=SEED,
            tier=tier,
            loras=tuple(LoraScale(name, 1.0 / len(names)) for name in names),
        )
        engine, runner = self._made.engine, self._made.engine.runner
        work = self._made.preparer.prepare(self._made.limits.resolve(parameters))
        engine.validate(work)
        applied = engine.adapters.applied(work.request.loras)
        with torch.inference_mode():
            embedding = runner.encode(work.prompts[0], applied)
            return runner.start(work.plan, [embedding], work.form, applied)

    def close(self) -> None:
        self._made.engine.close()


def measure(
    out: Path, device: torch.device, budget_s: float, *, is_toy: bool, tiers: Sequence[str]
) -> BenchmarkRun:
    about = {"machine": machine(), "goal": GOAL, "is_toy": is_toy, "device": str(device)}
    run = BenchmarkRun(out, budget_s, **about)
    with tempfile.TemporaryDirectory(prefix="flux-lora-") as folder:
        lora = LoraRun(Path(folder), device, is_toy=is_toy, tiers=",".join(tiers))
        run.section("ready", lora.open)
        run.section("adding", lora.add_all)
        for tier in tiers:
            run.section(tier, partial(lora.steps, tier))
        lora.close()
    run.save()
    return run


def main(arguments: Sequence[str]) -> int:
    tiers = (LOSSLESS, HIGH)
    parser = run_parser("python -m benchmarks.flux.lora", __doc__, tiers, tiers)
    asked = read_arguments(parser, arguments, RESULTS, TOY_RESULTS)
    device = torch.device(asked.device)
    run = measure(asked.out, device, asked.budget, is_toy=asked.toy, tiers=asked.names)
    return run.end()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
