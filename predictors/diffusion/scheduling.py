"""Picks the pictures of the next denoise step, and charges steps to their jobs.

Pictures of different shapes can't share a pass. The caller that has used least goes first. Of its
pictures the one with the least work left goes first, which gives the shortest mean time, unless
another has waited for longer than the age limit or a quarter of its time to the deadline. So among
N slots of one caller a picture takes at most about N times as long as alone, whatever else arrives.
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

LEAST_GAIN = 0.05  # of a wider pass; less is lost when one of its pictures leaves early
ROUNDING = 1e-9
PATIENCE = 0.25  # part of the time to its deadline after which a picture goes before shorter ones
MOST_SHAPES = 1024  # shapes whose seconds are kept; callers may ask for any size


@dataclass(frozen=True, slots=True)
class Candidate:
    """A picture that may take the next step, as `pick_group` compares it."""

    shape: Hashable
    """Pictures of equal shape can share a pass."""
    num_rows: int
    remaining: float
    """Work left, in any one unit: model calls times tokens."""
    waited_s: float
    """Seconds in its slot without taking a step."""
    turn: int = 0
    """Its caller's rank; the lowest goes first."""
    share: float = 1.0
    """Its caller's share of the device, 0 to 1."""
    patience_s: float = math.inf
    """Seconds of waiting after which it goes before shorter pictures; the age limit if less."""


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
    """Time of its text and picture encoders on the device."""

    @property
    def started_state(self) -> DenoiseState:
        assert self.state is not None
        return self.state

    @property
    def is_finished(self) -> bool:
        return self.state is not None and self.state.is_finished

    @property
    def calls_done(self) -> int:
        """Launched calls of the model."""
        return 0 if self.state is None else self.state.calls_done

    @property
    def due_preview(self) -> int | None:
        """The number of the preview that is made after the step being launched, or None."""
        previews = self.job.work.previews
        if not previews or self.calls_done + 1 not in previews:
            return None
        return previews.index(self.calls_done + 1)

    @property
    def num_rows(self) -> int:
        return self.job.work.request.num_rows

    def candidate(self, turn: int = 0, share: float = 1.0) -> Candidate:
        work = self.job.work
        shape, num_rows = work.shape, self.num_rows
        left = work.plan.num_calls - self.calls_done
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
            "steps_done": self.calls_done,
            "steps_left": self.job.work.plan.num_calls - self.calls_done,
            "shape": f"{request.width}x{request.height}",
            "tier": request.tier,
        }


def with_at_most_one_new(slots: list[Slot]) -> list[Slot]:
    """`slots` without new ones but the first; all of them if all are new.

    So pictures that denoise wait for the text encoders of one new picture per step at most.
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
    """The slots of `waiting` that step together, chosen by `pick_group`."""
    turns = [(0, 1.0)] * len(waiting)
    if holders.is_shared:
        ranks, accounts = holders.ranks(), [slot.job.account for slot in waiting]
        turns = [(ranks[account.name], holders.share(account)) for account in accounts]
    candidates = [slot.candidate(*turn) for slot, turn in zip(waiting, turns, strict=True)]
    return [waiting[i] for i in pick_group(candidates, width_of, age_limit_s, seconds_of)]


@dataclass(frozen=True, slots=True)
class DenoiseStep:
    """A launched denoise step."""

    slots: tuple[Slot, ...]
    rows: int
    expected_s: float
    """Seconds that its pictures were charged when it was launched."""
    encoded: tuple[tuple[Slot, DeviceSpan], ...]
    """The new pictures among them, with the time of their encoders."""

    @property
    def resolution(self) -> str:
        return self.slots[0].resolution

    @property
    def key(self) -> tuple[Hashable, int]:
        return self.slots[0].job.work.shape, self.rows


class StepCharges:
    """Charges device seconds to jobs. Since a GPU is a step behind, a step is charged when it is
    launched with the seconds that such a step took last, and corrected when it has ended. Engine
    thread only."""

    def __init__(self, holders: SlotHolders) -> None:
        self._holders = holders
        self._seconds: dict[tuple[Hashable, int], float] = {}

    def set_expected(self, seconds: Mapping[tuple[Any, int], float]) -> None:
        """Set the seconds of steps by shape and rows, as measured while warming."""
        self._seconds = {key: took for key, took in seconds.items() if took}

    def make_step(
        self, slots: Sequence[Slot], encoded: Sequence[tuple[Slot, DeviceSpan]]
    ) -> DenoiseStep:
        """The step of `slots`, about to be launched. `encoded` may hold other slots: those are left
        out."""
        rows = sum(slot.num_rows for slot in slots)
        expected = self._seconds.get((slots[0].job.work.shape, rows), 0.0)
        own = tuple(pair for pair in encoded if pair[0] in slots)
        return DenoiseStep(tuple(slots), rows, expected, own)

    def charge_launched(self, step: DenoiseStep) -> None:
        self._charge(step, step.expected_s)

    def charge_finished(self, step: DenoiseStep, seconds: float) -> None:
        """Correct the charge of a step that took so many seconds on the device, and charge its
        encoders."""
        if len(self._seconds) == MOST_SHAPES and step.key not in self._seconds:
            del self._seconds[next(iter(self._seconds))]
        self._seconds[step.key] = seconds
        self._charge(step, seconds - step.expected_s)
        for slot, span in step.encoded:
            took = span.seconds()
            self._holders.charge(slot.job, took)
            seconds += took
        self._holders.end_step(seconds)

    def charge_decode(self, slot: Slot, span: DeviceSpan) -> None:
        """Charge the decoder's time; for an edit that took no step, its encoders' time too."""
        took = span.seconds()
        if slot.encoding is not None and not slot.job.work.plan.num_calls:
            took += slot.encoding.seconds()  # no step has charged it
        self._holders.charge(slot.job, took)

    def _charge(self, step: DenoiseStep, seconds: float) -> None:
        for slot in step.slots:
            self._holders.charge(slot.job, seconds * slot.num_rows / step.rows)


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
