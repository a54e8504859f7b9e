"""The FLUX room without server, host or thread: a test decides who arrives when and takes every
turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from predictors.compute.device.placement import Placement
from predictors.diffusion.engine import FluxEngine
from predictors.diffusion.inputs import FluxWork, Preparer
from predictors.diffusion.latents import Canvas
from predictors.diffusion.predictor import make_offer
from predictors.diffusion.request import ImageResult, Offer, Wish
from predictors.models.flux.config import Facts, read_facts
from predictors.serving.job import Job
from predictors.settings import FluxSettings

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "shapes-flux"
FAST: dict[str, Any] = {"sizes": "64x64", "default_size": "64x64", "max_sequence_length": 16}

FluxJob = Job[FluxWork, ImageResult]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Room:
    """One checkpoint, loaded."""

    facts: Facts
    offer: Offer
    preparer: Preparer
    engine: FluxEngine

    def job(self, wish: Wish, name: str = "job") -> FluxJob:
        """A job that was not submitted yet."""
        return Job(name, self.preparer.prepare(self.offer.request(wish)))

    def canvas(self, job: FluxJob) -> Canvas:
        """The picture in the making."""
        canvas = self.engine._slots[job].canvas
        assert canvas is not None
        return canvas

    def draw(self, wish: Wish) -> Pixels:
        """One picture, alone."""
        return self.drive([(0, self.job(wish))])[0]

    def latents(self, wish: Wish) -> torch.Tensor:
        """One picture's latents after its last step, (patches, channels)."""
        job = self.job(wish)
        assert self.engine.admit(job)
        for _ in range(job.work.request.num_inference_steps):
            self.engine.step([job])
        latents = self.canvas(job).latents
        self.engine.evict(job)
        return latents

    def drive(self, arrivals: Sequence[tuple[int, FluxJob]]) -> list[Pixels]:
        """Take turns until all are drawn; each job asks for a slot from its turn of arrival on."""
        waiting, turn = list(arrivals), 0
        while waiting or self.engine.busy:
            arrived = [entry for entry in waiting if entry[0] <= turn]
            for entry in arrived:
                if self.engine.admit(entry[1]):
                    waiting.remove(entry)
            self.engine.step(self.engine.active)
            turn += 1
            assert turn < 10_000, "somebody is never served"
        return [picture(job) for _, job in arrivals]


def picture(job: FluxJob) -> Pixels:
    """What a finished job was answered with."""
    assert job.done
    assert job.error is None
    (chunk,) = job._chunks
    return chunk.pixels


def open_room(
    checkpoint: Path = CHECKPOINT,
    *,
    model: str = "flux-test",
    compiler: str = "off",
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> Room:
    """A loaded room that is not warm yet; small shapes unless `settings` say otherwise."""
    knobs = FluxSettings(**(FAST | settings))
    facts, tokenizers = read_facts(checkpoint)
    placement = Placement(torch.device("cpu"), dtype, compiler)
    offer = make_offer(facts, knobs)
    preparer = Preparer(facts, tokenizers, dtype, offer.tiers)
    engine = FluxEngine(model, facts, offer, preparer, knobs, placement)
    engine.load()
    return Room(facts, offer, preparer, engine)
