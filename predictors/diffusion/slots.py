"""A job's place in the engine, and what scheduling, metrics and operators read of it."""

from __future__ import annotations

from dataclasses import dataclass

from predictors import metrics
from predictors.diffusion.inputs import DiffusionWork
from predictors.diffusion.latents import DenoiseState
from predictors.diffusion.request import ImageResult
from predictors.diffusion.scheduling import Candidate
from predictors.serving.job import Job

DiffusionJob = Job[DiffusionWork, ImageResult]


@dataclass(slots=True)
class Slot:
    """A job's place. Engine thread only.

    `state` is None until the job's first step, when its prompts are encoded.
    """

    job: DiffusionJob
    state: DenoiseState | None = None
    started_at: float = 0.0
    waited_s: float = 0.0
    """Time in the slot without taking a step."""

    @property
    def started(self) -> DenoiseState:
        """The state of a slot that has taken its first step."""
        assert self.state is not None
        return self.state

    @property
    def is_finished(self) -> bool:
        """True if all steps are taken and only decoding is left."""
        return self.state is not None and self.state.is_finished

    @property
    def steps_done(self) -> int:
        """Computed steps so far."""
        return 0 if self.state is None else self.state.index

    @property
    def candidate(self) -> Candidate:
        """The slot as scheduling sees it."""
        work = self.job.work
        shape, num_rows = work.shape, work.request.num_rows
        left = work.plan.num_calls - self.steps_done
        cost = left * num_rows * (shape.num_text + shape.rows * shape.columns)
        return Candidate(shape, num_rows, cost, self.waited_s)

    @property
    def resolution(self) -> str:
        """The metrics label of its size."""
        request = self.job.work.request
        return metrics.resolution_class(request.width, request.height)

    def describe(self) -> dict[str, object]:
        """Its entry in the admin state, as JSON values."""
        request = self.job.work.request
        return {
            "steps_done": self.steps_done,
            "steps_left": self.job.work.plan.num_calls - self.steps_done,
            "shape": f"{request.width}x{request.height}",
            "tier": request.tier,
        }


def with_one_new(slots: list[Slot]) -> list[Slot]:
    """`slots` with only the first of the new ones, unless all are new.

    Pictures that denoise then wait for at most one new picture's text encoders per step.
    """
    new = [slot for slot in slots if slot.state is None]
    return slots if len(new) == len(slots) else [s for s in slots if s not in new[1:]]
