"""The embedded checkpoint's engine without a server, stepped with many pictures at once as a server
would.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import REGISTRY

from benchmarks.common import paths
from benchmarks.flux.likeness import Pixels
from benchmarks.flux.ours import Assembly, Drawing, assemble
from checkpoints.training.scenes import Scene, caption
from predictors.compute.device.placement import Placement, place
from predictors.diffusion.inputs import FluxWork, Plan, Preparer
from predictors.diffusion.request import TURBO, Offer, Wish
from predictors.diffusion.sampling import plan
from predictors.settings import ComputeSettings, FluxSettings

CHECKPOINT = paths.SHAPES_FLUX
MODEL = "flux-tiers"
STEPS_SERIES = "predictors_denoise_steps_total"
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
    """A tier, and for turbo a plan of model calls."""

    name: str
    tier: str
    plan: Plan = plan

    @property
    def calls(self) -> int:
        """Model calls per picture without a negative prompt."""
        return sum(self.plan(STEPS)) if self.tier == TURBO else STEPS


class TiersEngine:
    """The engine, loaded and warm, and the preparation of its requests."""

    def __init__(self, made: Assembly, placement: Placement) -> None:
        self._made = made
        self.placement = placement
        self.engine = made.engine

    @property
    def offer(self) -> Offer:
        return self._made.offer

    def works(self, scenes: Iterable[tuple[int, Scene]], way: Way) -> Iterator[FluxWork]:
        """One picture per (seed, scene)."""
        facts, tokenizers, tiers = self._made.facts, self._made.tokenizers, self.offer.tiers
        preparer = Preparer(facts, tokenizers, self.placement.dtype, tiers, way.plan)
        for seed, scene in scenes:
            wish = Wish(caption(scene), seed=seed, guidance_scale=GUIDANCE, tier=way.tier)
            yield preparer.prepare(self.offer.request(wish))

    def draw(self, works: Iterable[FluxWork]) -> list[Pixels]:
        """All pictures in order, as many at once as there are slots."""
        engine, source, jobs = self.engine, iter(works), list[Drawing]()
        is_over = False
        while not is_over or engine.busy:
            while not is_over and len(engine.active) < engine.slots:
                if (work := next(source, None)) is None:
                    is_over = True
                else:
                    jobs.append(Drawing(work))
                    engine.admit(jobs[-1])
            if engine.busy:
                engine.step(engine.active)
        for job in jobs:
            if (failure := job.drain_unread()) is not None:
                raise failure
        return [picture for job in jobs for picture in job.pixels]

    @property
    def calls_so_far(self) -> float:
        """Model calls that the engine has counted, one per picture and step."""
        return REGISTRY.get_sample_value(STEPS_SERIES, {"model": MODEL}) or 0.0


def open_engine(
    device: str, tiers: Sequence[str], slots: int, threads: int = 0, **changes: Any
) -> TiersEngine:
    """Loaded and warmed; `changes` are settings of the FLUX model."""
    placement = place(ComputeSettings(device=device, threads=threads))
    settings = FluxSettings(**(SETTINGS | {"tiers": ",".join(tiers), "slots": slots} | changes))
    made = assemble(CHECKPOINT, settings, placement, MODEL)
    made.engine.load()
    made.engine.warm(lambda *_: None)
    return TiersEngine(made, placement)
