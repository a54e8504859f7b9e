"""The promised shapes that an engine warms after it is ready, and their order.

A shape is warmed between two steps: the first of the plan when the engine has time, and before all
others the one that a request needs. What fails is refused from then on; the rest goes on. What ran
out of memory is tried once more when nothing runs.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from predictors import metrics
from predictors.errors import ShapeNotWarm
from predictors.serving.engine import Progress, StickyDeviceError, is_out_of_memory

log = logging.getLogger(__name__)
_PUT_OFF = "put_off"
_SAID = {"failed": "failed", _PUT_OFF: "ran out of memory, and is tried once more"}


@dataclass(frozen=True, slots=True, eq=False)
class PlannedShape:
    """A shape that is warmed once."""

    name: str
    """For the log, metadata and refusals."""
    run: Callable[[], object]
    """Warms it. Engine thread."""
    provides: frozenset[Hashable] = frozenset()
    """The needs of requests that it meets; empty if it only makes requests faster."""


class WarmPlan:
    """The shapes of one model, some of them warm from the beginning. Engine thread, unless
    noted."""

    def __init__(
        self,
        model: str,
        shapes: Sequence[PlannedShape],
        progress: Progress,
        on_over: Callable[[], object],
        *,
        num_warm: int = 0,
        met: Collection[Hashable] = (),
        advice: str = "ask for another size or tier",
    ) -> None:
        """`shapes` are in the order of warming. `num_warm` others are warm already, and meet the
        needs `met`. `progress` is called after each shape, also after one that failed; `on_over`
        once, before the last call of `progress`. `advice` tells callers what to ask for in place of
        a shape that failed."""
        self._model = model
        self._open = list(shapes)
        self._put_off: list[PlannedShape] = []  # ran out of memory once
        self._progress = progress
        self._on_over = on_over
        self._advice = advice
        self._total = num_warm + len(shapes)
        self._met = set(met)
        self._failed: dict[Hashable, str] = {}  # what requests need -> name of the shape
        self._failures: list[str] = []
        self._lock = threading.Lock()
        self._left = metrics.planned_warm_ups_left.labels(model)
        self._left.set(self._num_left)

    # -- any thread ------------------------------------------------------------------------------
    @property
    def is_over(self) -> bool:
        """Each shape is warm or has failed."""
        return not self._num_left

    @property
    def counts(self) -> tuple[int, int]:
        """Shapes that are warm or have failed, and all."""
        return self._total - self._num_left, self._total

    @property
    def _num_left(self) -> int:
        return len(self._open) + len(self._put_off)

    def check(self, needs: Collection[Hashable]) -> None:
        """Raise `ShapeNotWarm` if the warm-up of one of `needs` has failed."""
        if not self._failed:
            return
        with self._lock:
            name = next((self._failed[need] for need in needs if need in self._failed), None)
            is_put_off = any(shape.name == name for shape in self._put_off)
        if is_put_off:
            raise ShapeNotWarm(
                f"{self._model} does not serve {name} now: its warm-up ran out of memory, and is "
                f"tried once more when no request runs; {self._advice}"
            )
        if name is not None:
            raise ShapeNotWarm(
                f"{self._model} does not serve {name} until it is started again: its warm-up "
                f"failed, and the server's log says why; {self._advice}"
            )

    @property
    def failures(self) -> list[str]:
        """Names of the shapes that failed for good."""
        return list(self._failures)

    def describe(self) -> dict[str, object]:
        """Progress, and the names of shapes that wait and that failed, as JSON values."""
        done, total = self.counts
        waiting = [shape.name for shape in [*self._open, *self._put_off]]
        return {
            "done": done,
            "total": total,
            "waiting": waiting,
            "failed": self.failures,
        }

    # -- engine thread ---------------------------------------------------------------------------
    def warm_next(self, *, is_idle: bool) -> None:
        """Warm the next shape, if one is left; one that ran out of memory only if nothing runs
        (`is_idle`). Raises `StickyDeviceError`."""
        if self._open:
            self._warm(self._open[0])
        elif is_idle and self._put_off:
            self._warm(self._put_off[0])

    def warm_for(self, needs: Collection[Hashable]) -> None:
        """Warm, before all others, what is not warm yet of `needs`. Raises `ShapeNotWarm` for what
        can't be warmed, and `StickyDeviceError`. Needs that are met, or that no shape provides, are
        ignored."""
        for need in needs:
            while (shape := self._provider(need)) is not None:
                self._warm(shape)
                if need not in self._failed:
                    break
        self.check(needs)

    def _provider(self, need: Hashable) -> PlannedShape | None:
        if need in self._met:
            return None
        return next((shape for shape in self._open if need in shape.provides), None)

    def _warm(self, shape: PlannedShape) -> None:
        name, outcome = shape.name, "ok"
        try:
            shape.run()
        except StickyDeviceError:
            raise
        except Exception as error:
            # the frames hold the engine's tensors
            traceback.clear_frames(error.__traceback__)
            outcome = "failed"
            if is_out_of_memory(error) and shape not in self._put_off:
                outcome = _PUT_OFF
            message = "%s: the warm-up of %s %s; requests that need it are refused"
            said, log_fields = _SAID[outcome], {"model": self._model}
            log.exception(message, self._model, name, said, extra=log_fields)
            name = f"{name} ({_SAID[outcome]})"
        self._note(shape, outcome)
        if self.is_over:
            self._on_over()
        if outcome != _PUT_OFF:
            metrics.planned_warm_ups_total.labels(self._model, outcome).inc()
        self._left.set(self._num_left)
        self._progress(name, *self.counts)

    def _note(self, shape: PlannedShape, outcome: str) -> None:
        """Take the shape off the plan, or put it at its end. Another shape may meet the needs of
        one that failed."""
        held = self._open if shape in self._open else self._put_off
        with self._lock:
            if outcome == "ok":
                self._met |= shape.provides
                for need in shape.provides:
                    self._failed.pop(need, None)
            else:
                self._failed |= dict.fromkeys(shape.provides - self._met, shape.name)
            if outcome == "failed":
                self._failures.append(shape.name)
            elif outcome == _PUT_OFF:  # before it leaves the others: the plan is not over meanwhile
                self._put_off.append(shape)
            held.remove(shape)


@runtime_checkable
class WarmsLater(Protocol):
    """Optional part of an engine: promised shapes that it warms once it is ready."""

    @property
    def plan(self) -> WarmPlan | None:
        """The shapes that `Engine.warm` has left; None if it left none. Any thread."""
