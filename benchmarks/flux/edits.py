"""Edits of pictures at full size with random weights: image to image and FLUX.1-Kontext beside
diffusers' pipelines, compiled; the time of a preview; and a distilled setting of eight steps in
fp8, with an adapter as distilled weights are published, and without.

`python -m benchmarks.flux.edits` writes `results/flux_edits.json`; on a GPU it takes about six
minutes. `--toy` runs the same code at the embedded checkpoint's size on any device: its numbers
mean nothing.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxImg2ImgPipeline, FluxKontextPipeline
from safetensors.torch import save_file

from benchmarks.common import paths
from benchmarks.common.clock import Clock
from benchmarks.common.goals import Goal
from benchmarks.common.machine import machine
from benchmarks.common.run import BenchmarkRun, read_arguments, run_parser
from benchmarks.common.stats import Spread
from benchmarks.flux import random_weights
from benchmarks.flux.cases import KONTEXT, Case, Row
from benchmarks.flux.lora import RANKS, random_adapter
from benchmarks.flux.ours import Drawing, Ours, placement_for
from benchmarks.flux.peer import Peer, few_steps
from benchmarks.flux.random_weights import Models
from benchmarks.flux.sections import COMPILED, free
from predictors.diffusion.request import HIGH, LOSSLESS
from predictors.models.flux.config import read_checkpoint
from predictors.settings import FluxSettings

RESULTS = paths.RESULTS / "flux_edits.json"
TOY_RESULTS = paths.SCRATCH / "flux-edits-toy.json"
SECTIONS = ("distilled", "previews", "img2img", KONTEXT)
STRENGTH = 0.75
STEPS, DISTILLED_STEPS, NUM_PREVIEWS = 28, 8, 3
DISTILLED = "distilled"
"""Name of the adapter."""
PREVIEW_MS, DISTILLED_S = 20.0, 0.66
REPEATS = 5


@dataclass(frozen=True, slots=True)
class EditOptions:
    device: torch.device
    is_toy: bool
    only: frozenset[str] = frozenset(SECTIONS)

    @property
    def side(self) -> int:
        return 64 if self.is_toy else 1024

    @property
    def steps(self) -> int:
        return 4 if self.is_toy else STEPS

    @property
    def runs(self) -> int:
        return 1 if self.is_toy else 2

    def case(self, model: str, steps: int, **fields: Any) -> Case:
        return Case(model, self.side, self.side, steps, **fields)

    def settings(self, **fields: Any) -> FluxSettings:
        size = f"{self.side}x{self.side}"
        tokens = 16 if self.is_toy else 0
        return FluxSettings(
            sizes=size,
            default_size=size,
            tiers=f"{LOSSLESS},{HIGH}",
            slots=2,
            max_sequence_length=tokens,
            edits="on",
            preview="linear",
            **fields,
        )


@contextmanager
def opened(options: EditOptions, models: Models, settings: FluxSettings) -> Iterator[Ours]:
    """Our engine on these weights, ready."""
    ours = Ours(models, placement_for(options.device), settings)
    try:
        print(ours.open(), flush=True)
        yield ours
    finally:
        ours.close()
        free(Clock(options.device))


def store_autoencoder(models: Models, folder: Path) -> None:
    """Write its weights: a checkpoint takes pictures if its files hold an encoder."""
    state = {name: tensor.contiguous() for name, tensor in models.vae.state_dict().items()}
    save_file(state, folder / "vae" / "diffusion_pytorch_model.safetensors")


def peer_of(options: EditOptions, models: Models, kind: Any) -> Peer:
    """Diffusers' pipeline, its blocks compiled, with the faster attention of a Hopper GPU."""
    config, _ = read_checkpoint(models.folder)
    eager = Peer("diffusers eager", models, config, kind)
    if options.device.type == "cuda":
        eager.use_attention("_native_cudnn")
    return eager.compiled(COMPILED, "eager" if options.is_toy else "inductor")


def beside(options: EditOptions, peer: Peer, ours: Ours, case: Case) -> dict[str, Any]:
    """Seconds of a picture by the peer and by each tier, and how many times faster those are."""
    peer.warm(case)
    theirs, _ = peer.measure(case, options.runs)
    found: dict[str, Any] = {"case": asdict(case), peer.name: _seconds(theirs)}
    for tier in ours.tiers:
        ours.draw(few_steps(case), tier)
        row, _ = ours.measure(case, tier, options.runs)
        times = theirs.seconds.median / row.seconds.median
        found[row.engine] = _seconds(row) | {"times_faster": round(times, 3)}
    print(f"  {case}: {found}", flush=True)
    return found


def _seconds(row: Row) -> dict[str, Any]:
    return {"seconds": row.seconds, "step_ms": row.step_ms}


def distilled(options: EditOptions, ours: Ours) -> dict[str, Any]:
    """Eight steps in fp8, without an adapter and with one of the largest rank."""
    weights = random_adapter(ours.model, DISTILLED, max(RANKS), options.device)
    ours.engine.add_adapter(weights)
    found: dict[str, Any] = {}
    plain = options.case("dev", 2 if options.is_toy else DISTILLED_STEPS)
    for name, case in (("plain", plain), ("adapter", replace(plain, adapter=DISTILLED))):
        ours.draw(case, HIGH)
        row, _ = ours.measure(case, HIGH, REPEATS)
        found[name] = _seconds(row)
        goal = Goal(f"{DISTILLED_STEPS} steps in fp8, {name}, seconds", DISTILLED_S)
        found[name]["goal"] = goal.result(row.seconds.median)
    print(f"  distilled: {found}", flush=True)
    return found


def previews(options: EditOptions, ours: Ours) -> dict[str, Any]:
    """Device milliseconds of a preview by the projection, from its launch until the host has it,
    and of the model's own decoder."""
    clock, case = Clock(options.device), options.case("dev", options.steps)
    job = Drawing(ours.prepare(case, LOSSLESS, previews=NUM_PREVIEWS))
    ours.engine.admit(job)
    ours.drive([job])
    linear = [1e3 * (end - start) for name, start, end, _ in job.stages if name == "preview"]
    work = ours.prepare(case, LOSSLESS)
    with torch.inference_mode():
        embedding = ours.runner.encode(work.prompts[0])
        state = ours.runner.start(work.plan, [embedding], work.form)
        own = clock.device_ms(lambda: ours.runner.decode(state), REPEATS)
    found: dict[str, Any] = {"linear_ms": Spread.of(linear), "vae_ms": own}
    found["goal"] = Goal("a preview, ms", PREVIEW_MS).result(max(linear))
    print(f"  previews: {found}", flush=True)
    return found


def measure(out: Path, budget_s: float, options: EditOptions) -> BenchmarkRun:
    run = BenchmarkRun(out, budget_s, machine=machine(), is_toy=options.is_toy)
    place = placement_for(options.device)
    changes = (random_weights.TOY if options.is_toy else random_weights.FULL,)
    with tempfile.TemporaryDirectory(prefix="flux-edits-") as name:
        folder = random_weights.write_folder(Path(name) / "dev", *changes)
        dev = random_weights.make(folder, place.device, place.dtype)
        store_autoencoder(dev, folder)
        if options.only - {KONTEXT}:
            of_dev(run, options, dev)
        if KONTEXT in options.only:
            other = folder.with_name(KONTEXT)
            random_weights.write_folder(other, *changes, random_weights.KONTEXT)
            store_autoencoder(dev, other)
            of_kontext(run, options, random_weights.other_of(dev, other))
    run.save()
    return run


def of_dev(run: BenchmarkRun, options: EditOptions, dev: Models) -> None:
    peer = peer_of(options, dev, FluxImg2ImgPipeline)
    edit = options.case("dev", options.steps, strength=STRENGTH)
    settings = options.settings(lora_max_active=1, lora_max_rank=max(RANKS))
    with opened(options, dev, settings) as ours:
        works = {
            "distilled": partial(distilled, options, ours),
            "previews": partial(previews, options, ours),
            "img2img": partial(beside, options, peer, ours, edit),
        }
        for name, work in works.items():
            if name in options.only:
                run.section(name, work)


def of_kontext(run: BenchmarkRun, options: EditOptions, kontext: Models) -> None:
    peer = peer_of(options, kontext, FluxKontextPipeline)
    with opened(options, kontext, options.settings()) as ours:
        reference = options.case(KONTEXT, options.steps)
        run.section(KONTEXT, partial(beside, options, peer, ours, reference))


def main(arguments: Sequence[str]) -> int:
    parser = run_parser("python -m benchmarks.flux.edits", __doc__, SECTIONS, SECTIONS)
    asked = read_arguments(parser, arguments, RESULTS, TOY_RESULTS)
    options = EditOptions(torch.device(asked.device), asked.toy, frozenset(asked.names))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer's and the compiler's own
        run = measure(asked.out, asked.budget, options)
    return run.end()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
