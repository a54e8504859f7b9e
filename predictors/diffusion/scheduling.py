"""Slots of jobs, the pictures of the next denoise step, and how many rows share a pass.

Pictures of different shapes can't share a pass. The one with the least work left goes first, which
gives the shortest mean time to a picture. A picture that has waited in its slot for longer than the
age limit goes before all others, the longest wait first; so among N slots its remaining steps take
at most about N times as long as alone, whatever keeps arriving.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from predictors import metrics
from predictors.diffusion.inputs import DiffusionWork
from predictors.diffusion.latents import DenoiseState
from predictors.diffusion.request import ImageResult
from predictors.serving.job import Job

DiffusionJob = Job[DiffusionWork, ImageResult]

S = TypeVar("S", bound=Hashable)

LEAST_GAIN = 0.05  # a smaller gain is lost when one picture of a pass leaves early or arrives late


@dataclass(frozen=True, slots=True)
class Candidate:
    shape: Hashable
    """Pictures of equal shape can share a pass."""
    num_rows: int
    remaining: float
    """Work left, in any one unit: model calls times tokens."""
    waited_s: float
    """Seconds in its slot without taking a step."""


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
        assert self.state is not None
        return self.state

    @property
    def is_finished(self) -> bool:
        return self.state is not None and self.state.is_finished

    @property
    def steps_done(self) -> int:
        return 0 if self.state is None else self.state.index

    @property
    def candidate(self) -> Candidate:
        work = self.job.work
        shape, num_rows = work.shape, work.request.num_rows
        left = work.plan.num_calls - self.steps_done
        cost = left * num_rows * (shape.num_text + shape.rows * shape.columns)
        return Candidate(shape, num_rows, cost, self.waited_s)

    @property
    def resolution(self) -> str:
        request = self.job.work.request
        return metrics.resolution_class(request.width, request.height)

    def describe(self) -> dict[str, object]:
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


def pick_group(
    candidates: Sequence[Candidate], width_of: Callable[[Any], int], age_limit_s: float
) -> list[int]:
    """Indices of those that step together, ascending: one shape, at least one picture, and no more
    rows than `width_of(shape)` unless the first alone has more.

    `candidates` are in order of admission, which also decides ties. Empty only if there are none.
    """

    def precedence(i: int) -> tuple[float, float, int]:
        waited = candidates[i].waited_s
        return (-waited if waited > age_limit_s else 0.0), candidates[i].remaining, i

    picked: list[int] = []
    rows = 0
    for i in sorted(range(len(candidates)), key=precedence):
        one = candidates[i]
        if not picked:
            shape, width = one.shape, width_of(one.shape)
        elif one.shape != shape or rows + one.num_rows > width:
            continue
        picked.append(i)
        rows += one.num_rows
    return sorted(picked)


def best_widths(
    seconds: Mapping[tuple[S, int], float], least_gain: float = LEAST_GAIN
) -> dict[S, int]:
    """Rows of each shape that should share a pass, from the seconds that one of (shape, rows)
    takes: the narrowest that no wider one beats by `least_gain` in seconds per row."""
    measured: defaultdict[S, list[tuple[int, float]]] = defaultdict(list)
    for (shape, rows), took in seconds.items():
        measured[shape].append((rows, took / rows))
    return {shape: _best_width(sorted(per_row), least_gain) for shape, per_row in measured.items()}


def _best_width(per_row: Sequence[tuple[int, float]], least_gain: float) -> int:
    best, least = per_row[0]
    for rows, took in per_row[1:]:
        if took <= least * (1 - least_gain):
            best, least = rows, took
    return best
