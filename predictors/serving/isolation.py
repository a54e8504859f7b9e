"""Takes one step for many jobs and, when it fails, finds out for whom. Knows no thread, no queue
and no device.

A step that raises has advanced nobody (`Engine.step` promises that), so its jobs can be stepped
again in halves: after at most 2n - 1 tries everybody has advanced by exactly one step but those
that fail alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from predictors.serving.engine import StickyDeviceError

J = TypeVar("J")

Attempt = Callable[[Sequence[J]], BaseException | None]
"""Step these jobs together; returns what was raised, or None. Called on the engine thread."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is torch's; recognised by name, because the core knows no torch."""
    return any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)


class Isolation(Generic[J]):
    """Steps jobs together, and apart when they must. Engine thread only.

    After running out of memory at some width it steps in groups of half that width until `reset`:
    trying the same again in each turn would pay for two steps to take one. When one job turns out
    to be too large even alone, nothing is learned about the others. `on_split` is told how many
    jobs a step had before it was halved, and whether for want of memory.
    """

    def __init__(self, attempt: Attempt[J], on_split: Callable[[int, bool], None]) -> None:
        self._attempt = attempt
        self._on_split = on_split
        self._widest: int | None = None

    def reset(self) -> None:
        """Forget the learned width: somebody has left, there may be room again."""
        self._widest = None

    def step(self, jobs: Sequence[J]) -> dict[J, BaseException]:
        """Advance every job once; returns those that fail alone, with the reason.

        Raises `StickyDeviceError` at once: then nothing can be tried again.
        """
        failed: dict[J, BaseException] = {}
        width = min(self._widest or len(jobs), len(jobs))
        for start in range(0, len(jobs), width):
            self._step_group(jobs[start : start + width], failed)
        if any(is_out_of_memory(error) for error in failed.values()):
            self._widest = None
        return failed

    def _step_group(self, jobs: Sequence[J], failed: dict[J, BaseException]) -> None:
        error = self._attempt(jobs)
        if error is None:
            return
        if isinstance(error, StickyDeviceError):
            raise error
        if len(jobs) == 1:
            failed[jobs[0]] = error
            return
        half = len(jobs) // 2
        is_oom = is_out_of_memory(error)
        if is_oom:
            self._widest = max(1, min(half, self._widest or half))
        self._on_split(len(jobs), is_oom)
        self._step_group(jobs[:half], failed)
        self._step_group(jobs[half:], failed)
