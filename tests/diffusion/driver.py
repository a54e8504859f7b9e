"""Drives an engine without server, host or thread: a test admits the jobs and takes every step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from predictors.compute.device.placement import Placement
from predictors.diffusion.engine import DiffusionEngine
from predictors.diffusion.inputs import DiffusionWork, Preparer
from predictors.diffusion.latents import DenoiseState
from predictors.diffusion.limits import PictureLimits, make_limits
from predictors.diffusion.model import DiffusionModel
from predictors.diffusion.request import ImageParameters, ImageResult, PictureChunk
from predictors.models.flux.model import FluxModel
from predictors.serving.job import Job
from predictors.settings import FluxSettings

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "shapes-flux"
FAST: dict[str, Any] = {"sizes": "64x64", "default_size": "64x64", "max_sequence_length": 16}

DiffusionJob = Job[DiffusionWork, PictureChunk]
Pixels = NDArray[np.uint8]

_numbers = itertools.count()


@dataclass(frozen=True)
class EngineDriver:
    """A loaded engine, and what a request goes through on its way to it."""

    limits: PictureLimits
    preparer: Preparer
    engine: DiffusionEngine

    def job(self, image: ImageParameters, name: str = "") -> DiffusionJob:
        """A job that is not admitted yet, with an id of its own."""
        return Job(
            name or f"job-{next(_numbers)}", self.preparer.prepare(self.limits.resolve(image))
        )

    def steps_done(self, job: DiffusionJob) -> int:
        """Computed steps of an active job."""
        running: Any = self.engine.describe()["running"]
        done: int = running[job.id]["steps_done"]
        return done

    def state(self, job: DiffusionJob) -> DenoiseState:
        """The state of a job that has taken its first step."""
        state = self.engine._slots[job].state
        assert state is not None
        return state

    def draw(self, image: ImageParameters) -> Pixels:
        """One picture, alone."""
        return self.drive([(0, self.job(image))])[0]

    def latents(self, image: ImageParameters) -> torch.Tensor:
        """One picture's latents after its last step, (patches, channels)."""
        job = self.job(image)
        assert self.engine.admit(job)
        for _ in range(max(job.work.plan.num_calls, 1)):
            self.engine.step([job])
        latents = self.state(job).latents
        self.engine.evict(job)
        return latents

    def drive(self, arrivals: Sequence[tuple[int, DiffusionJob]]) -> list[Pixels]:
        """Step until all are drawn; a job asks for a slot from the step of its arrival on."""
        waiting, num_steps = list(arrivals), 0
        while waiting or self.engine.busy:
            arrived = [entry for entry in waiting if entry[0] <= num_steps]
            for entry in arrived:
                if self.engine.admit(entry[1]):
                    waiting.remove(entry)
            self.engine.step(self.engine.active)
            num_steps += 1
            assert num_steps < 10_000, "a job is never served"
        return [picture(job) for _, job in arrivals]


def picture(job: DiffusionJob) -> Pixels:
    """The picture of a finished job."""
    assert job.done
    assert job.error is None
    *before, result = job._chunks
    assert isinstance(result, ImageResult)
    assert not any(isinstance(chunk, ImageResult) for chunk in before)
    return result.pixels


def open_driver(
    checkpoint: Path = CHECKPOINT,
    *,
    model: str = "flux-test",
    compiler: str = "off",
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> EngineDriver:
    """A loaded FLUX engine, not warm yet; small shapes unless `settings` say otherwise."""
    driver = unloaded_driver(checkpoint, model=model, compiler=compiler, dtype=dtype, **settings)
    driver.engine.load()
    return driver


def unloaded_driver(
    checkpoint: Path = CHECKPOINT,
    *,
    model: str = "flux-test",
    compiler: str = "off",
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> EngineDriver:
    """The same, not loaded."""
    placement = Placement(torch.device("cpu"), dtype, compiler)
    return _driver(FluxModel(checkpoint), placement, model, FAST | settings)


def drive_model(
    model: DiffusionModel, placement: Placement, *, name: str = "test", **settings: Any
) -> EngineDriver:
    """A loaded engine of any model, not warm yet."""
    driver = _driver(model, placement, name, settings)
    driver.engine.load()
    return driver


def _driver(
    model: DiffusionModel, placement: Placement, name: str, settings: dict[str, Any]
) -> EngineDriver:
    knobs = FluxSettings(**settings)
    limits = make_limits(model.config, knobs, placement.device)
    preparer = Preparer(model, placement.dtype, limits.tiers)
    engine = DiffusionEngine(name, model, limits, preparer, knobs, placement)
    return EngineDriver(limits, preparer, engine)
