"""The `Engine` Protocol: the seam between the serving core and the code of a task.

A diffusion request and a token sequence are the same thing here: a job that is admitted, takes N
steps and leaves. Code below this Protocol may touch a device; code above it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from predictors.serving.job import Job

W = TypeVar("W")  # work: a request that is prepared for the device
C = TypeVar("C")  # chunk: a piece of the result, one or many per job

Progress = Callable[[str, int, int], None]
"""Called as `progress(shape, done, total)` after each warmed shape, on the engine thread."""


class StickyDeviceError(Exception):
    """The device context is lost (illegal address, device assert, ECC) and the process must end.

    An engine raises it from `step`; the host then fails all jobs in flight, and itself.
    """


class Engine(Protocol[W, C]):
    """Runs admitted jobs on a device, step by step. Engine thread only, unless noted."""

    @property
    def slots(self) -> int:
        """Maximum number of active jobs. Constant after construction; any thread."""

    @property
    def spare_slots(self) -> int:
        """Slots beyond `slots`, for callers that hold less than their share while others hold all.
        A step still advances no more than `slots` jobs. Constant after construction; any
        thread."""

    @property
    def busy(self) -> bool:
        """False if a step of all active jobs would do nothing. Any thread."""

    @property
    def active(self) -> Sequence[Job[W, C]]:
        """The jobs that hold a slot, in order of admission. A new sequence, never changed later."""

    def load(self) -> None:
        """Read the weights onto the device. Called once, before `warm`."""

    def warm(self, progress: Progress) -> None:
        """Compile and run every promised shape once. Nothing compiles after it returns."""

    def validate(self, work: W) -> None:
        """Raise `InvalidRequest` if this can never be admitted, even alone. Pure; any thread."""

    def admit(self, job: Job[W, C]) -> bool:
        """Give the job a slot and all memory it can ever need, or return False and change
        nothing."""

    def step(self, jobs: Sequence[Job[W, C]]) -> None:
        """Advance these jobs (all of them active), or those of them whose turn it is, by one step;
        emit chunks, finish and release jobs that are done.

        The turn is of the callers who have used least (`SlotHolders`). Each second of the step is
        charged once (`Job.charge`), to the jobs that it advanced and before they finish.

        All or nothing: if it raises, no job has advanced, nothing was emitted, and the same jobs
        can be stepped again in smaller groups with the same results. The host relies on it to
        find the job that fails.
        """

    def evict(self, job: Job[W, C]) -> None:
        """Release all that the job holds. No-op for a job that holds nothing."""

    def close(self) -> None:
        """Release the device. Called once, last."""


@runtime_checkable
class Describes(Protocol):
    """Optional part of an engine: its state, for operators."""

    def describe(self) -> Mapping[str, object]:
        """The engine's state as JSON values: `running` (details by job id) and whatever else is
        of interest (caches, warm shapes, precision).

        Any thread, also before `load` and after `close`. Never blocks, never reads a tensor's
        values, never includes a caller's input. The engine runs on meanwhile: each value is
        correct, but two of them may be from before and after the same step.
        """


def is_out_of_memory(error: BaseException) -> bool:
    """True for torch's out-of-memory error. Compares names: the core does not import torch."""
    return any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
