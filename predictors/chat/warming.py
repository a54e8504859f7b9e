"""The warm-up of a chat model: every promised pass before it is ready, or with `qwen_vl.warm`
minimal those of the default requests, and the others later as parts of a `WarmPlan`.

Passes are warmed with the slot and the page of padding rows, which no sequence ever has, so that
they may be warmed between the steps of sequences.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from predictors.chat.adapters.slots import AdapterSlots
from predictors.chat.invariance import fix_width
from predictors.chat.pass_needs import PassNeeds
from predictors.chat.promised import PassKind, PromisedPass
from predictors.chat.rehearsal import Rehearsal
from predictors.chat.runner import ChatRunner
from predictors.chat.scheduling import PACK_PROMPTS
from predictors.chat.work import ChatWork
from predictors.compute.compile.compiling import RecompileGuard
from predictors.compute.compile.start import Start
from predictors.compute.device.graphs import Graphs
from predictors.compute.device.placement import is_device_lost
from predictors.serving.engine import Progress, StickyDeviceError
from predictors.serving.warm_plan import PlannedShape, WarmPlan

ADVICE = "send a shorter or longer prompt, or a picture of another size"

Unit = tuple[PassKind, int]
"""Kind and width of passes that are warmed together."""
Conversations = Sequence[tuple[str, ChatWork]]
"""Conversations with their names."""


class DefaultPicture(NamedTuple):
    """A picture of the largest area that a request gets without asking for it."""

    patches: int
    tokens: int


@dataclass(frozen=True, slots=True)
class CompilationWatch:
    """Counts of the compilations and captures of one engine."""

    graphs: Graphs
    start: Start
    guard: RecompileGuard

    def seal(self) -> None:
        """The engine is ready: later compilations and captures are counted as unplanned."""
        self.graphs.seal()
        self.start.end()
        self.guard.seal()

    @contextmanager
    def planned(self) -> Iterator[None]:
        """Do not count the block's compilations and captures. After `seal`."""
        with self.guard.planned(), self.start.planned(), self.graphs.planned():
            yield


@dataclass(frozen=True, slots=True)
class PassWarming:
    """The promised passes of one loaded engine. Engine thread."""

    rehearsal: Rehearsal
    adapters: AdapterSlots
    watch: CompilationWatch
    needs: PassNeeds
    is_cuda: bool
    is_deterministic: bool
    on_warmed: Callable[[float], object]
    """Called after each shape of the plan with the time, of `time.perf_counter`."""
    on_over: Callable[[Sequence[str]], object]
    """Called once no pass is left to be warmed, with a plan after its last shape. Gets the names of
    those that failed."""
    warm: list[str] = field(default_factory=list)
    """Names of the passes that are warm, in order. Any thread may read it."""

    @property
    def _runner(self) -> ChatRunner:
        return self.rehearsal.runner

    def warm_all(self, conversations: Conversations, progress: Progress) -> None:
        """Warm every pass, then run `conversations` through the whole model. Raises
        `EngineFailed`."""
        self._begin()
        passes = self._passes()
        for done, each in enumerate(passes):
            progress(each.name, done, len(passes))
            self._run(each)
        progress("ready", len(passes), len(passes))
        self._end(conversations, lambda: self.on_over(()))

    def warm_first(
        self, model: str, conversations: Conversations, picture: DefaultPicture, progress: Progress
    ) -> WarmPlan:
        """Warm the passes of `conversations`, and of a default picture with as much text, one
        answer at a time; returns the plan of the others. Raises `EngineFailed`."""
        self._begin()
        units: dict[Unit, list[PromisedPass]] = {}
        for each in self._passes():
            units.setdefault((each.kind, each.width), []).append(each)
        wanted = self._wanted(conversations, picture)
        first = [unit for unit in units if unit in wanted or unit[0] is PassKind.PROBE]
        shapes = list(self._planned({u: p for u, p in units.items() if u not in first}))
        self._use(first)
        for done, unit in enumerate(first):
            progress(unit_name(unit), done, len(first) + len(shapes))
            for each in units[unit]:
                self._run(each)
        self._end(conversations, (lambda: None) if shapes else (lambda: self.on_over(())))
        plan = WarmPlan(
            model,
            shapes,
            progress,
            lambda: self._end_plan(plan),
            num_warm=len(first),
            advice=ADVICE,
        )
        progress("ready", *plan.counts)
        return plan

    def _end_plan(self, plan: WarmPlan) -> None:
        self.watch.start.end_planned()
        self.on_over(plan.failures)
        self.on_warmed(time.perf_counter())

    def _passes(self) -> list[PromisedPass]:
        """All promised passes, of each kind the largest first."""
        return [*self.rehearsal.pictures.warm_shapes(), *self._runner.warm_shapes()]

    def _run(self, each: PromisedPass) -> None:
        each.run()
        self.warm.append(each.name)

    # -- before ready ----------------------------------------------------------------------------
    def _begin(self) -> None:
        if self.is_deterministic and not self.is_cuda:
            fix_width(self._runner)

    def _end(self, conversations: Conversations, then: Callable[[], object]) -> None:
        if self.is_deterministic and self.is_cuda:
            fix_width(self._runner)  # rows can be compared once their graphs are captured
        for what, work in conversations:
            self.rehearsal.run(what, work)
        then()
        self.adapters.clear()
        self.watch.seal()

    def _wanted(self, conversations: Conversations, picture: DefaultPicture) -> set[Unit]:
        """Kinds and widths of the passes that are warmed before ready."""
        runner, needs = self._runner, self.needs
        # the width must not depend on other answers beside one
        steps = runner.decode_widths if self.is_deterministic else runner.decode_widths[:1]
        choices = {1, *steps, PACK_PROMPTS if runner.packs else 1}
        prompts = [work.num_prompt_tokens for _, work in conversations]
        with_picture = picture.tokens + max(prompts, default=0)
        widths = {min(with_picture, runner.limits.max_context), *prompts}
        graphs = {needs.graph_of(picture.patches)}
        for _, work in conversations:
            graphs |= needs.graphs_of(work)
        found = {(PassKind.DECODE, width) for width in steps}
        found |= {(PassKind.CHOICE, self._choice_width(rows)) for rows in choices}
        for tokens in widths:
            found |= {(PassKind.PROMPT, width) for width in needs.widths_of(tokens)}
        return found | {(PassKind.TOWER, width) for width in graphs if width is not None}

    def _choice_width(self, rows: int) -> int:
        widths = self._runner.chooser.widths
        return next(width for width in widths if width >= min(rows, widths[-1]))

    # -- later -----------------------------------------------------------------------------------
    def _planned(self, left: Mapping[Unit, Sequence[PromisedPass]]) -> Iterator[PlannedShape]:
        """The passes of `left` in the order of warming: the widest decode step, without which a
        step takes a pass per row, then what requests need, then what makes them faster."""
        steps = [unit for unit in left if unit[0] is PassKind.DECODE]
        needed = [unit for unit in left if self._is_needed(unit)]
        others = [unit for unit in left if unit not in needed and unit not in steps]
        for unit in (*steps[:1], *needed, *steps[1:], *others):
            kind, width = unit
            own_choices = kind is PassKind.CHOICE and (PassKind.DECODE, width) in left
            if own_choices:
                continue  # warmed with that step
            passes = left[unit]
            if kind is PassKind.DECODE:
                passes = [*left.get((PassKind.CHOICE, width), ()), *passes]
            run = partial(self._warm_later, passes)
            provided = frozenset({unit}) if unit in needed else frozenset()
            yield PlannedShape(unit_name(unit), run, provided)

    def _is_needed(self, unit: Unit) -> bool:
        kind, _ = unit
        return kind is PassKind.TOWER or (kind is PassKind.PROMPT and self.needs.is_fixed)

    def _warm_later(self, passes: Sequence[PromisedPass]) -> None:
        """Warm passes after ready: what they compile and capture counts as planned. Raises
        `StickyDeviceError`."""
        before, is_warm = self._used(), False
        self._use({*before, *((each.kind, each.width) for each in passes)})
        try:
            with self.watch.planned():
                for each in passes:
                    self._run(each)
            is_warm = True
        except RuntimeError as error:
            if is_device_lost(error):
                raise StickyDeviceError("the device context is lost") from error
            raise
        finally:
            if not is_warm:
                self._use(before)
            self.on_warmed(time.perf_counter())

    # -- widths ----------------------------------------------------------------------------------
    def _used(self) -> set[Unit]:
        """Kinds and widths of the passes that steps use."""
        runner = self._runner
        mixed, choices = runner.mixed.widths, runner.chooser.widths
        lists = runner.chunk_widths, mixed, runner.decode_widths, choices
        kinds = PassKind.PROMPT, PassKind.MIXED, PassKind.DECODE, PassKind.CHOICE
        return {(kind, w) for kind, ws in zip(kinds, lists, strict=True) for w in ws}

    def _use(self, units: Sequence[Unit] | set[Unit]) -> None:
        """Have steps use these widths alone. Where prompts are cut alike at any time
        (`PassNeeds.is_fixed`), the widths of passes over prompts stay all."""
        runner = self._runner
        prompts, runner.mixed.widths, runner.decode_widths, runner.chooser.widths = (
            tuple(sorted(width for kind, width in units if kind is wanted))
            for wanted in (PassKind.PROMPT, PassKind.MIXED, PassKind.DECODE, PassKind.CHOICE)
        )
        if not self.needs.is_fixed:
            runner.chunk_widths = prompts


def unit_name(unit: Unit) -> str:
    """The name of such passes in the log, metadata and refusals."""
    kind, width = unit
    if kind is PassKind.PROBE:
        return "vision"
    counts_rows = kind in (PassKind.CHOICE, PassKind.DECODE)
    return f"{kind.value} {'x' * counts_rows}{width}"
