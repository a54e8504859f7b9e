"""With `flux.warm` minimal: the default shape is warmed before the model is ready, and the others
later, one by one, as parts of a `WarmPlan`.

A request names what it needs by the passes that it runs. A pass that no promised shape runs is not
compiled, and not waited for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial

import torch

from predictors.compute.compile.compiling import RecompileGuard
from predictors.compute.compile.start import Start
from predictors.diffusion.inputs import DiffusionWork, Preparer
from predictors.diffusion.limits import PictureLimits
from predictors.diffusion.model import StepShape
from predictors.diffusion.previews import Previews
from predictors.diffusion.request import FILL
from predictors.diffusion.runner import DiffusionRunner, device_errors
from predictors.diffusion.scheduling import best_widths
from predictors.diffusion.warming import (
    PromisedStep,
    edit_sizes,
    promised_steps,
    warm_edit,
    warm_projection,
    warm_prompts,
    warm_step,
)
from predictors.errors import EngineFailed
from predictors.serving.engine import Progress
from predictors.serving.warm_plan import PlannedShape, WarmPlan

PREVIEW = "preview"


def passes_of(work: DiffusionWork, rank_widths: Sequence[int]) -> set[Hashable]:
    """The passes that a picture runs. Its adapters may take any of `rank_widths` rank rows."""
    shape = work.shape
    found: set[Hashable] = {_step(shape, 0), _decode(shape)}
    if work.request.loras:
        found |= {_step(shape, width) for width in rank_widths}
    if work.source is not None:
        for each in work.source.encodings.values():
            height, width = each.keep.shape
            found.add(_encode(width, height))
    if work.previews:
        found.add(PREVIEW)
    return found


def _step(shape: StepShape, rank_width: int) -> Hashable:
    """The need for a step of one row, named as `runner.StepKey` tells passes apart."""
    return "step", shape.num_text, shape.num_patches, shape.form, rank_width


def _decode(shape: StepShape) -> Hashable:
    return "decode", shape.rows, shape.columns


def _encode(width: int, height: int) -> Hashable:
    return "encode", width, height


class LaterShapes:
    """The promised shapes of one loaded engine. Engine thread."""

    def __init__(
        self,
        runner: DiffusionRunner,
        preparer: Preparer,
        limits: PictureLimits,
        rank_widths: Sequence[int],
        previews: Previews,
        start: Start,
        guard: RecompileGuard,
    ) -> None:
        self._runner = runner
        self._preparer = preparer
        self._limits = limits
        self._previews = previews
        self._start = start
        self._guard = guard
        steps = promised_steps(runner, limits, rank_widths)
        self._steps = sorted(steps, key=self._precedence)
        self._seconds: dict[tuple[StepShape, int], float] = {}
        self._left: defaultdict[StepShape, set[PromisedStep]] = defaultdict(set)
        for step in steps:
            self._left[step.shape].add(step)

    def _precedence(self, step: PromisedStep) -> tuple[bool, bool, bool, bool]:
        """The default size and tier first, and what a request needs before what makes it faster."""
        limits = self._limits
        default = limits.default_width, limits.default_height
        form = limits.tiers.form_of(limits.tiers.default)
        is_wide, is_adapted = step.rows > 1, step.rank_width > 0
        return is_wide, is_adapted, step.size != default, step.shape.form != form

    # -- before ready ----------------------------------------------------------------------------
    def warm_first(self) -> dict[tuple[StepShape, int], float]:
        """Warm the prompts and the default shape; each shape is served one row at a time from then
        on. Returns the seconds of a step by shape and rows. In `torch.inference_mode`. Raises
        `EngineFailed`."""
        warm_prompts(self._runner, self._preparer, self._limits)
        self._warm_step(self._steps[0])
        self._runner.seal(self._widths(), self._seconds)
        return dict(self._seconds)

    def plan(self, model: str, progress: Progress) -> WarmPlan:
        """The shapes that are left after `warm_first`."""
        shapes = [
            *self._planned(self._steps[1:], is_wide=False),
            *self._planned_edits(),
            *self._planned_projection(),
            *self._planned(self._steps[1:], is_wide=True),
        ]
        first = self._steps[0]
        met = self._provided(first)
        plan = WarmPlan(model, shapes, progress, self._end, num_warm=1, met=met)
        progress(first.name_by(self._runner), *plan.counts)
        return plan

    def _planned(self, steps: Sequence[PromisedStep], *, is_wide: bool) -> Iterator[PlannedShape]:
        for step in steps:
            if (step.rows > 1) is is_wide:
                run = partial(self._run, partial(self._warm_step, step))
                yield PlannedShape(step.name_by(self._runner), run, self._provided(step))

    def _planned_edits(self) -> Iterator[PlannedShape]:
        for width, height in edit_sizes(self._limits):
            warm = partial(warm_edit, self._runner, self._preparer, self._limits, (width, height))
            provided = frozenset({_encode(width, height)})
            yield PlannedShape(f"edit of {width}x{height}", partial(self._run, warm), provided)

    def _planned_projection(self) -> Iterator[PlannedShape]:
        if self._previews.may_project:
            run = partial(self._run, self._warm_projection)
            yield PlannedShape("projection for previews", run, frozenset({PREVIEW}))

    def _provided(self, step: PromisedStep) -> frozenset[Hashable]:
        if step.rows > 1:
            return frozenset()
        found = {_step(step.shape, step.rank_width)}
        if not step.rank_width:
            found.add(_decode(step.shape))
        if step.read[0]:
            found.add(_encode(*step.read))
        if self._limits.edits.kind == FILL:
            found.add(_encode(*step.size))
        return frozenset(found)

    # -- one shape -------------------------------------------------------------------------------
    def _run(self, warm: Callable[[], object]) -> None:
        """Call `warm` after ready: what it compiles and captures counts as planned. Raises
        `StickyDeviceError`."""
        with (
            torch.inference_mode(),
            device_errors(),
            self._guard.planned(),
            self._start.planned(),
            self._runner.planned(),
        ):
            warm()

    def _warm_step(self, step: PromisedStep) -> None:
        if step.rows > 1 and any(each.rows == 1 for each in self._left[step.shape]):
            raise EngineFailed("a step of one row of this shape could not be warmed")
        took = warm_step(self._runner, self._preparer, self._limits, step)
        if not step.rank_width:
            self._seconds[step.shape, step.rows] = took
        self._left[step.shape].discard(step)
        self._update_width(step.shape)

    def _update_width(self, shape: StepShape) -> None:
        """Let pictures of `shape` share passes once all of its steps are warm."""
        if not self._left[shape]:
            self._runner.widths[shape] = self._widths()[shape]

    def _warm_projection(self) -> None:
        self._previews.project_by(warm_projection(self._runner, self._preparer, self._limits))

    def _widths(self) -> dict[StepShape, int]:
        """Rows per pass of each shape: 1 until all of its steps are warm."""
        found = best_widths(self._seconds)
        return {shape: 1 if left else found[shape] for shape, left in self._left.items()}

    def _end(self) -> None:
        """The plan is over: keep the graphs of these widths, and the compiled code."""
        self._runner.seal(self._widths(), self._seconds)
        self._start.end_planned()
