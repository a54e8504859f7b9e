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
from predictors.diffusion.inputs import CallPlan, DiffusionWork, Preparer
from predictors.diffusion.request import TURBO, ImageParameters
from predictors.diffusion.sampling import plan_calls
from predictors.models.flux.model import FluxModel
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
    plan: CallPlan = plan_calls
    fp8_conditioning: bool = False

    @property
    def calls(self) -> int:
        """Model calls per picture without a negative prompt."""
        return sum(self.plan(STEPS)) if self.tier == TURBO else STEPS


class TiersEngine:
    def __init__(self, model: FluxModel, made: Assembly, placement: Placement) -> None:
        self._model = model
        self.placement, self.engine, self.limits = placement, made.engine, made.limits

    def works(self, scenes: Iterable[tuple[int, Scene]], way: Way) -> Iterator[DiffusionWork]:
        """One picture per (seed, scene)."""
        preparer = Preparer(self._model, self.placement.dtype, self.limits.tiers, way.plan)
        for seed, scene in scenes:
            parameters = ImageParameters(
                caption(scene), seed=seed, guidance_scale=GUIDANCE, tier=way.tier
            )
            yield preparer.prepare(self.limits.resolve(parameters))

    def draw(self, works: Iterable[DiffusionWork]) -> list[Pixels]:
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
            if (failure := job.error) is not None:
                raise failure
        return [picture for job in jobs for picture in job.pixels]

    @property
    def calls_so_far(self) -> float:
        """Model calls that the engine has counted, one per picture and step."""
        return REGISTRY.get_sample_value(STEPS_SERIES, {"model": MODEL}) or 0.0


def open_engine(
    device: str, tiers: Sequence[str], slots: int, threads: int = 0, **changes: Any
) -> TiersEngine:
    placement = place(ComputeSettings(device=device, threads=threads))
    settings = FluxSettings(**(SETTINGS | {"tiers": ",".join(tiers), "slots": slots} | changes))
    model = FluxModel(CHECKPOINT)
    made = assemble(model, settings, placement, MODEL)
    made.engine.load()
    made.engine.warm(lambda *_: None)
    return TiersEngine(model, made, placement)
