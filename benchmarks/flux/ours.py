"""This engine on random weights, stepped as its host's thread does, and PNG files by the codec's
writer. A picture is timed from its request (tokens, noise and schedule are prepared inside the
time; the prompt's embedding is cached, as the peer's is given) to the last byte of its PNG. This
module does not import KServe: a GPU machine may lack it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.clock import Clock, Marks, no_synchronising
from benchmarks.common.energy import first_card, joules_of
from benchmarks.common.stats import Spread
from benchmarks.flux.cases import (
    GUIDANCE,
    PROMPT,
    SEED,
    Case,
    Drawn,
    Row,
    Stages,
    source_pixels,
    summed_up,
)
from benchmarks.flux.random_weights import Models
from predictors.compute.device.placement import Placement, place
from predictors.diffusion.engine import DiffusionEngine
from predictors.diffusion.inputs import DiffusionWork, Preparer
from predictors.diffusion.latents import DenoiseState
from predictors.diffusion.limits import PictureLimits, make_limits
from predictors.diffusion.model import Embedding
from predictors.diffusion.request import (
    FP8,
    LOSSLESS,
    TURBO,
    ImageParameters,
    ImageResult,
    LoraScale,
    SourcePicture,
)
from predictors.diffusion.runner import DiffusionRunner
from predictors.diffusion.scheduling import DiffusionJob
from predictors.models.flux.model import FluxModel
from predictors.models.flux.passes import FluxPasses
from predictors.protocol.png import write_png
from predictors.settings import ComputeSettings, FluxSettings

STAGE_REPEATS = 5
ENCODE_THREADS = 2  # what the server took when this was measured


@dataclass(frozen=True, slots=True)
class Opening:
    load_s: float
    warm_s: float
    held_bytes: int
    """Weights, buffers and graphs on the device."""
    num_graphs: int
    """Captures until it was ready."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """A model's engine before it is loaded, and what requests pass on their way to it."""

    limits: PictureLimits
    preparer: Preparer
    engine: DiffusionEngine


def assemble(model: FluxModel, settings: FluxSettings, placement: Placement, name: str) -> Assembly:
    """`name` labels the engine's metrics."""
    limits = make_limits(model.config, settings, placement.device)
    preparer = Preparer(model, placement.dtype, limits.tiers)
    engine = DiffusionEngine(name, model, limits, preparer, settings, placement)
    return Assembly(limits, preparer, engine)


class Drawing(DiffusionJob):
    def __init__(self, work: DiffusionWork) -> None:
        super().__init__("bench", work)
        self.pixels: list[Any] = []

    def emit(self, chunk: ImageResult) -> None:
        """On the thread that steps the engine."""
        self.pixels.append(chunk.pixels)
        super().emit(chunk)


class Ours:
    """This engine on one checkpoint, on the caller's thread."""

    def __init__(self, models: Models, placement: Placement, settings: FluxSettings) -> None:
        self._clock = Clock(placement.device)
        model = FluxModel(models.folder, models.opened)
        made = assemble(model, settings, placement, "bench")
        self.model, self.config, self.limits = model, model.config, made.limits
        self._preparer, self.engine = made.preparer, made.engine
        self._png_level = settings.png_level
        self._pool = ThreadPoolExecutor(ENCODE_THREADS)
        self._opening = Opening(0.0, 0.0, 0, 0)
        self._recompilations = 0

    # -- life ------------------------------------------------------------------------------------
    def open(self) -> Opening:
        before = self._clock.held_bytes()
        load_s, _ = self._clock.seconds(self.engine.load)
        warm_s, _ = self._clock.seconds(lambda: self.engine.warm(lambda *_: None))
        held = self._clock.held_bytes() - before
        self._opening = Opening(load_s, warm_s, held, self.runner.captures)
        return self._opening

    def close(self) -> None:
        self.engine.close()
        self._pool.shutdown()

    @property
    def runner(self) -> DiffusionRunner:
        return self.engine.runner

    @property
    def plain_tiers(self) -> Sequence[str]:
        """The tiers that make every pass, so that one pass can be compared."""
        return [tier for tier in self.tiers if tier != TURBO]

    @property
    def tiers(self) -> Sequence[str]:
        return self.limits.tiers.loaded

    # -- drawing ---------------------------------------------------------------------------------
    def _source(self, case: Case) -> SourcePicture | None:
        if case.strength is None and not case.is_reference:
            return None
        size = case.width, case.height
        return SourcePicture(source_pixels(*self.limits.source_size(size, size)))

    def prepare(
        self, case: Case, tier: str, row: int = 0, prompt: str = PROMPT, previews: int = 0
    ) -> DiffusionWork:
        parameters = ImageParameters(
            prompt,
            width=case.width,
            height=case.height,
            num_inference_steps=case.steps,
            guidance_scale=GUIDANCE,
            seed=SEED + row,
            tier=tier,
            loras=(LoraScale(case.adapter),) if case.adapter else None,
            source=self._source(case),
            strength=case.strength,
            partial_images=previews,
        )
        return self._preparer.prepare(self.limits.resolve(parameters))

    def admit(self, case: Case, tier: str) -> list[Drawing]:
        """Raises `RuntimeError` if there are too few slots."""
        works = [self.prepare(case, tier, row) for row in range(case.batch)]
        jobs = [Drawing(work) for work in works]
        for job in jobs:
            if not self.engine.admit(job):
                raise RuntimeError(f"{len(jobs)} jobs do not fit into {self.engine.slots} slots")
        return jobs

    def drive(
        self, jobs: Sequence[DiffusionJob], on_turn: Callable[[], None] = lambda: None
    ) -> None:
        """Step until all are done; raises the first failure."""
        while not all(job.done for job in jobs):
            self.engine.step(self.engine.active)
            on_turn()
        for job in jobs:
            if (failure := job.error) is not None:
                raise failure

    def draw(self, case: Case, tier: str) -> Drawn:
        marks = Marks(self._clock)

        def run() -> tuple[list[Any], float]:
            jobs = self.admit(case, tier)
            # a turn with a decode in it says nothing about steps
            self.drive(jobs, lambda: None if self._any_ends(jobs) else marks.set())
            pixels = [picture for job in jobs for picture in job.pixels]
            started = time.perf_counter()
            list(self._pool.map(lambda each: write_png(each, self._png_level), pixels))
            return pixels, time.perf_counter() - started

        with self._counting():
            seconds, (pixels, encode_s) = self._clock.seconds(run)
        return Drawn(seconds, marks.gaps_ms(), {"here": encode_s}, pixels)

    def _any_ends(self, jobs: Sequence[DiffusionJob]) -> bool:
        return any(job.done for job in jobs)

    def drive_mixed(self, waiting: Sequence[tuple[Case, str]], prompt: str) -> int:
        """Draw them all, each admitted as soon as a slot is free; returns the number of steps. On
        CUDA a call that makes the host wait for the device raises `RuntimeError`."""
        works = [self.prepare(case, tier, prompt=prompt) for case, tier in waiting]
        jobs = [Drawing(work) for work in works]
        arrivals, turns = list(jobs), 0
        try:
            with self._counting(), no_synchronising(self._clock):
                while not all(job.done for job in jobs):
                    while arrivals and self.engine.admit(arrivals[0]):
                        arrivals.pop(0)
                    self.engine.step(self.engine.active)
                    turns += 1
        finally:
            for job in jobs:
                self.engine.evict(job)
        return turns

    def latents(self, case: Case, tier: str) -> Tensor:
        """After the last step, (batch, patches, channels)."""
        jobs = self.admit(case, tier)
        while unfinished := [job for job in jobs if not self.engine._slots[job].is_finished]:
            self.engine.step(unfinished)
        latents = torch.stack([self._canvas(job).latents for job in jobs])
        for job in jobs:
            self.engine.evict(job)
        return latents

    def width(self, case: Case, tier: str) -> int:
        return self.runner.width(self.prepare(case, tier).shape)

    def velocity(self, prompt: Tensor, pooled: Tensor, case: Case, tier: str, index: int) -> Tensor:
        """One pass at step `index` on the case's noise, (patches, channels); prompt (1, T, dim) and
        pooled (1, pooled_dim) as the text encoders give them."""
        with torch.inference_mode():
            canvas = self._begin(prompt, pooled, case, tier)
            canvas.calls_done = index
            return self.runner.denoise([canvas])[0].velocity

    def remember(self, prompt: Tensor, pooled: Tensor, case: Case) -> None:
        """Cache these states for the prompt, so that both sides draw from the same ones."""
        with torch.inference_mode():
            key = self.prepare(case, LOSSLESS).prompts[0].key
            self.engine._prompts.put(key, self._embedding(prompt, pooled))

    def _begin(self, prompt: Tensor, pooled: Tensor, case: Case, tier: str) -> DenoiseState:
        work = self.prepare(case, tier)
        return self.runner.start(work.plan, [self._embedding(prompt, pooled)], work.form)

    def _embedding(self, prompt: Tensor, pooled: Tensor) -> Embedding:
        passes = self.runner.passes
        assert isinstance(passes, FluxPasses)
        return Embedding(passes.parts.conditioning.context(prompt)[0], (pooled[0],))

    def _canvas(self, job: DiffusionJob) -> DenoiseState:
        canvas = self.engine._slots[job].state
        assert canvas is not None
        return canvas

    def late_work(self) -> dict[str, int]:
        """Compilations while drawing, and captures, since the engine was ready. The peer's
        compilations on this thread are not counted."""
        captures = self.runner.captures - self._opening.num_graphs
        return {"recompilations": self._recompilations, "captures": captures}

    @contextmanager
    def _counting(self) -> Iterator[None]:
        before = self.engine._guard.check()
        try:
            yield
        finally:
            self._recompilations += self.engine._guard.check() - before

    # -- measuring -------------------------------------------------------------------------------
    def is_fp8(self, tier: str) -> bool:
        return self.limits.tiers.form_of(tier) == FP8

    def measure(self, case: Case, tier: str, runs: int) -> tuple[Row, Drawn]:
        """`runs` timed runs of a case that was drawn before; the row, and the last run."""
        before = self._clock.reset_peak()
        card = first_card() if self._clock.is_cuda else None
        joules, drawn = joules_of(lambda: [self.draw(case, tier) for _ in range(runs)], card)
        peak = self._clock.peak_bytes()
        row = summed_up(
            f"here {tier}",
            case,
            drawn,
            passes=len(self.prepare(case, tier).plan.timesteps),
            is_fp8=self.is_fp8(tier),
            peak_bytes=None if peak is None else peak - before + self._opening.held_bytes,
            joules=joules,
        )
        return row, drawn[-1]

    def stages(self, case: Case, tier: str, row: Row) -> Stages:
        clock, runner = self._clock, self.runner
        prepare_s = [clock.seconds(lambda: self.prepare(case, tier))[0] for _ in range(3)]
        work = self.prepare(case, tier)
        prompt = work.prompts[0]
        with torch.inference_mode():
            embedding = runner.encode(prompt)
            canvas = runner.start(work.plan, [embedding], work.form)
            copies = [clock.seconds(lambda: runner.decode(canvas).result())[0] for _ in range(3)]
            ms: dict[str, Spread | None] = {
                "prepare": Spread.of(prepare_s).times(1e3),
                "text encoders": clock.device_ms(lambda: runner.encode(prompt), STAGE_REPEATS),
                "begin": clock.device_ms(
                    lambda: runner.start(work.plan, [embedding], work.form), STAGE_REPEATS
                ),
                "step": row.step_ms,
                "vae, with uint8 and its copy": clock.device_ms(
                    lambda: runner.decode(canvas), STAGE_REPEATS
                ),
                "vae, until the host has it": Spread.of(copies).times(1e3),
            }
        ms |= {f"png, {name}": s.times(1e3) for name, s in row.notes["encode_s"].items()}
        return Stages(row.engine, case, ms)


def placement_for(device: torch.device, cache_dir: str = "") -> Placement:
    """The server's choice: bfloat16 on CUDA, float32 on the CPU."""
    return place(ComputeSettings(device=str(device), cache_dir=cache_dir))


def settings_for(sizes: str, tiers: str, slots: int = 4) -> FluxSettings:
    return FluxSettings(sizes=sizes, slots=slots, tiers=tiers)
