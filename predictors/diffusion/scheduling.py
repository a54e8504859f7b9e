"""Slots of jobs, the pictures of the next denoise step, how many rows share a pass, and who pays.

Pictures of different shapes can't share a pass. The caller who has used least goes first. Of its
pictures the one with the least work left does, which gives the shortest mean time to a picture,
unless another has waited in its slot for longer than the age limit or a quarter of its deadline: so
among N slots of one caller a picture's remaining steps take at most about N times as long as alone,
whatever keeps arriving.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from predictors import metrics
from predictors.compute.device.pacing import DeviceSpan
from predictors.diffusion.adapters import NO_ADAPTERS, AppliedAdapters
from predictors.diffusion.inputs import DiffusionWork
from predictors.diffusion.latents import DenoiseState
from predictors.diffusion.request import PictureChunk
from predictors.serving.job import Job
from predictors.serving.turns import SlotHolders

DiffusionJob = Job[DiffusionWork, PictureChunk]

S = TypeVar("S", bound=Hashable)

LEAST_GAIN = 0.05  # a smaller gain is lost when one picture of a pass leaves early or arrives late
ROUNDING = 1e-9
PATIENCE = 0.25  # of the time to a deadline: shorter pictures may not use up all of it
MOST_SHAPES = 1024  # whose seconds are kept; a caller may ask for any size


@dataclass(frozen=True, slots=True)
class Candidate:
    shape: Hashable
    """Pictures of equal shape can share a pass."""
    num_rows: int
    remaining: float
    """Work left, in any one unit: model calls times tokens."""
    waited_s: float
    """Seconds in its slot without taking a step."""
    turn: int = 0
    """Of its caller; the lowest goes first."""
    share: float = 1.0
    """Of the device, 0 to 1, that its caller may claim."""
    patience_s: float = math.inf
    """It may wait for so long, if the age limit is longer."""


@dataclass(slots=True, eq=False)
class Slot:
    """A job's place. Engine thread only.

    `state` is None until the job's first step, when its prompts are encoded.
    """

    job: DiffusionJob
    state: DenoiseState | None = None
    applied: AppliedAdapters = NO_ADAPTERS
    started_at: float = 0.0
    waited_s: float = 0.0
    """Time in the slot without taking a step."""
    encoding: DeviceSpan | None = None
    """Of its text and picture encoders."""

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
    def due_preview(self) -> int | None:
        """The index of the preview that follows the step that is being taken, or None."""
        previews = self.job.work.previews
        if not previews or self.steps_done + 1 not in previews:
            return None
        return previews.index(self.steps_done + 1)

    @property
    def num_rows(self) -> int:
        return self.job.work.request.num_rows

    def candidate(self, turn: int = 0, share: float = 1.0) -> Candidate:
        work = self.job.work
        shape, num_rows = work.shape, self.num_rows
        left = work.plan.num_calls - self.steps_done
        cost = left * num_rows * shape.num_tokens
        return Candidate(shape, num_rows, cost, self.waited_s, turn, share, self._patience_s)

    @property
    def _patience_s(self) -> float:
        job = self.job
        return math.inf if job.deadline is None else PATIENCE * (job.deadline - job.submitted_at)

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
    candidates: Sequence[Candidate],
    width_of: Callable[[Any], int],
    age_limit_s: float,
    seconds_of: Callable[[Any, int], float] = lambda _, rows: float(rows),
) -> list[int]:
    """Indices of those that step together, ascending: one shape, at least one picture, and no more
    rows than `width_of(shape)` unless the first alone has more.

    `candidates` are in order of admission, which also decides ties. The caller whose turn it is
    goes first; pictures of others share its pass as long as that takes, by `seconds_of(shape,
    rows)`, no longer than the first caller's rows alone would with its share of the device. Empty
    only if there are none.
    """

    def precedence(i: int) -> tuple[int, float, float, int]:
        one = candidates[i]
        aged = -one.waited_s if one.waited_s > min(age_limit_s, one.patience_s) else 0.0
        return one.turn, aged, one.remaining, i

    picked: list[int] = []
    rows = 0
    for i in sorted(range(len(candidates)), key=precedence):
        one = candidates[i]
        wider = rows + one.num_rows
        if not picked:
            first, width, most_s = one, width_of(one.shape), 0.0
        elif one.shape != first.shape or wider > width:
            continue
        elif one.turn != first.turn:
            most_s = most_s or seconds_of(one.shape, rows) / first.share + ROUNDING
            if seconds_of(one.shape, wider) > most_s:
                continue
        picked.append(i)
        rows = wider
    return sorted(picked)


def pick_slots(
    waiting: Sequence[Slot],
    holders: SlotHolders,
    width_of: Callable[[Any], int],
    age_limit_s: float,
    seconds_of: Callable[[Any, int], float],
) -> list[Slot]:
    """Those of `waiting` that step together, as `pick_group` chooses."""
    turns = [(0, 1.0)] * len(waiting)
    if holders.is_shared:
        ranks, accounts = holders.ranks(), [slot.job.account for slot in waiting]
        turns = [(ranks[account.name], holders.share(account)) for account in accounts]
    candidates = [slot.candidate(*turn) for slot, turn in zip(waiting, turns, strict=True)]
    return [waiting[i] for i in pick_group(candidates, width_of, age_limit_s, seconds_of)]


@dataclass(frozen=True, slots=True)
class LaunchedGroup:
    """A denoise step on the device: its pictures, the seconds that they were charged when it was
    launched, and the text encoders that ran for new ones."""

    slots: tuple[Slot, ...]
    rows: int
    expected_s: float
    encoded: tuple[tuple[Slot, DeviceSpan], ...]

    @property
    def resolution(self) -> str:
        return self.slots[0].resolution

    @property
    def key(self) -> tuple[Hashable, int]:
        return self.slots[0].job.work.shape, self.rows


class StepCharges:
    """Charges device seconds to jobs: at once what such a step last took, and the rest when it has
    ended, since a GPU is a step behind. Engine thread only."""

    def __init__(self, holders: SlotHolders) -> None:
        self._holders = holders
        self._seconds: dict[tuple[Hashable, int], float] = {}

    def expect(self, seconds: Mapping[tuple[Any, int], float]) -> None:
        """The seconds of a step by its shape and rows, as measured while warming."""
        self._seconds = {key: took for key, took in seconds.items() if took}

    def group(
        self, slots: Sequence[Slot], encoded: Sequence[tuple[Slot, DeviceSpan]]
    ) -> LaunchedGroup:
        """A step that is about to be launched; of `encoded` those count that are in it."""
        rows = sum(slot.num_rows for slot in slots)
        expected = self._seconds.get((slots[0].job.work.shape, rows), 0.0)
        mine = tuple(pair for pair in encoded if pair[0] in slots)
        return LaunchedGroup(tuple(slots), rows, expected, mine)

    def launched(self, group: LaunchedGroup) -> None:
        self._charge(group, group.expected_s)

    def finished(self, group: LaunchedGroup, seconds: float) -> None:
        """The device has done it."""
        if len(self._seconds) == MOST_SHAPES and group.key not in self._seconds:
            del self._seconds[next(iter(self._seconds))]
        self._seconds[group.key] = seconds
        self._charge(group, seconds - group.expected_s)
        for slot, span in group.encoded:
            took = span.seconds()
            self._holders.charge(slot.job, took)
            seconds += took
        self._holders.end_step(seconds)

    def decoded(self, slot: Slot, span: DeviceSpan) -> None:
        took = span.seconds()
        if slot.encoding is not None and not slot.job.work.plan.num_calls:
            took += slot.encoding.seconds()  # no step has charged it
        self._holders.charge(slot.job, took)

    def _charge(self, group: LaunchedGroup, seconds: float) -> None:
        for slot in group.slots:
            self._holders.charge(slot.job, seconds * slot.num_rows / group.rows)


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
