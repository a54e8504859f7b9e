"""A job's place in the FLUX engine: its picture in the making and how long it has waited. Knows
jobs and canvases; launches nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from predictors import metrics
from predictors.diffusion.inputs import FluxWork
from predictors.diffusion.latents import Canvas
from predictors.diffusion.request import ImageResult
from predictors.diffusion.scheduling import Pending
from predictors.serving.job import Job

FluxJob = Job[FluxWork, ImageResult]


@dataclass(slots=True)
class Slot:
    """A job's place. `canvas` is None until its first turn, when its prompt is encoded."""

    job: FluxJob
    canvas: Canvas | None = None
    started_at: float = 0.0
    waited_s: float = 0.0
    """In the slot without taking a step."""

    @property
    def is_finished(self) -> bool:
        """Whether all steps are taken and only decoding is left."""
        return self.canvas is not None and self.canvas.is_finished

    @property
    def pending(self) -> Pending:
        """The slot as scheduling sees it."""
        work = self.job.work
        num_text, rows, columns, _ = work.shape
        left = work.course.num_calls - (self.canvas.index if self.canvas is not None else 0)
        num_rows = work.request.num_rows
        cost = left * num_rows * (num_text + rows * columns)
        return Pending(work.shape, num_rows, cost, self.waited_s)


def without_a_crowd(slots: list[Slot]) -> list[Slot]:
    """All of `slots`, but while pictures are in the making only one new one: those who denoise
    wait for at most one newcomer's text encoders, as they do for one decode."""
    new = [slot for slot in slots if slot.canvas is None]
    return slots if len(new) == len(slots) else [s for s in slots if s not in new[1:]]


def describe_slot(slot: Slot) -> dict[str, object]:
    """Its entry in the admin state, as JSON values."""
    request, calls, canvas = slot.job.work.request, slot.job.work.course.num_calls, slot.canvas
    done = 0 if canvas is None else canvas.index
    return {
        "steps_done": done,
        "steps_left": calls - done,
        "shape": f"{request.width}x{request.height}",
        "tier": request.tier,
    }


def resolution_of(slot: Slot) -> str:
    """The label under which its size is counted."""
    request = slot.job.work.request
    return metrics.resolution_class(request.width, request.height)


def canvas_of(slot: Slot) -> Canvas:
    """The canvas of a slot that has begun."""
    assert slot.canvas is not None
    return slot.canvas
