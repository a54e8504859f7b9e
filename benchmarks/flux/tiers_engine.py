"""The embedded checkpoint's engine, driven turn by turn: many pictures in the making at once, as a
server would have them, without one. Knows no judge and no statistics.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.common import paths
from benchmarks.flux.likeness import Pixels
from checkpoints.training.scenes import Scene, caption
from predictors import metrics
from predictors.compute.device.placement import Placement, place
from predictors.diffusion.engine import DiffusionEngine
from predictors.diffusion.inputs import CallPlan, DiffusionWork, Preparer
from predictors.diffusion.limits import PictureLimits, make_limits
from predictors.diffusion.request import TURBO, ImageParameters
from predictors.diffusion.sampling import plan_calls
from predictors.diffusion.scheduling import DiffusionJob
from predictors.models.flux.model import FluxModel
from predictors.serving.job import Job
from predictors.settings import ComputeSettings, FluxSettings

CHECKPOINT = paths.SHAPES_FLUX
MODEL = "flux-tiers"
SIDE = 128
NUM_TOKENS = 64  # what the checkpoint was trained on
STEPS = 28
GUIDANCE = 3.5
SETTINGS: dict[str, Any] = {
    "sizes": f"{SIDE}x{SIDE}",
    "default_size": f"{SIDE}x{SIDE}",
    "max_sequence_length": NUM_TOKENS,
    "default_steps": STEPS,
}


@dataclass(frozen=True, slots=True)
class Way:
    """How a picture is drawn: in a tier, with a plan of its own if that is turbo."""

    name: str
    tier: str
    plan: CallPlan = plan_calls

    @property
    def calls(self) -> int:
        """Of the model, per picture without a negative prompt."""
        return sum(self.plan(STEPS)) if self.tier == TURBO else STEPS


@dataclass(frozen=True, slots=True)
class Room:
    """The engine, warm, and what requests go through on their way to it."""

    placement: Placement
    model: FluxModel
    offer: PictureLimits
    engine: DiffusionEngine

    def works(self, scenes: Iterable[tuple[int, Scene]], way: Way) -> Iterator[DiffusionWork]:
        """One picture per (seed, scene)."""
        dtype = self.placement.dtype
        preparer = Preparer(self.model, dtype, self.offer.tiers, way.plan)
        for seed, scene in scenes:
            wish = ImageParameters(
                caption(scene), seed=seed, guidance_scale=GUIDANCE, tier=way.tier
            )
            yield preparer.prepare(self.offer.request(wish))

    def draw(self, works: Iterable[DiffusionWork]) -> list[Pixels]:
        """All pictures, in order, as many at once as there are slots."""
        return asyncio.run(self._draw(works))

    async def _draw(self, works: Iterable[DiffusionWork]) -> list[Pixels]:
        engine, drawn = self.engine, list[Pixels]()
        source, under_way = iter(works), deque[DiffusionJob]()
        is_over = False
        while not is_over or under_way:
            while not is_over and len(engine.active) < engine.slots:
                work = next(source, None)
                if work is None:
                    is_over = True
                else:
                    under_way.append(Job("picture", work))
                    engine.admit(under_way[-1])
            if engine.busy:
                engine.step(engine.active)
            while under_way and under_way[0].done:
                drawn += [chunk.pixels async for chunk in under_way.popleft().stream()]
        return drawn

    @property
    def calls_so_far(self) -> float:
        """Model calls that the engine has counted, one per picture and step."""
        counted: float = metrics.denoise_steps_total.labels(MODEL)._value.get()
        return counted


def open_room(
    device: str, tiers: Sequence[str], slots: int, threads: int = 0, **changes: Any
) -> Room:
    """Loaded and warmed; `changes` are settings of the FLUX room."""
    placement = place(ComputeSettings(device=device, threads=threads))
    settings = FluxSettings(**(SETTINGS | {"tiers": ",".join(tiers), "slots": slots} | changes))
    model = FluxModel(CHECKPOINT)
    offer = make_limits(model.config, settings, placement.device)
    preparer = Preparer(model, placement.dtype, offer.tiers)
    engine = DiffusionEngine(MODEL, model, offer, preparer, settings, placement)
    engine.load()
    engine.warm(lambda *_: None)
    return Room(placement, model, offer, engine)
