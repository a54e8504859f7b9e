"""The seam between the core and a model. Knows the verbs, not one implementation.

A diffusion request and a token sequence are the same thing here: something that is admitted, lives
for N steps and leaves. Everything below this Protocol may touch a device; nothing above it does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from predictors.serving.job import Job

W = TypeVar("W")  # prepared work: what a caller wants, ready for the device
C = TypeVar("C")  # chunk: what an engine hands back, one or many per job

Progress = Callable[[str, int, int], None]
"""Called as `progress(shape, done, total)` after each warmed shape, on the engine thread."""


class StickyDeviceError(Exception):
    """The device context is lost (illegal address, device assert, ECC); this process can't go on.

    An engine raises it from `step`; the host then fails everything in flight, and itself.
    """


class Engine(Protocol[W, C]):
    """What a model room offers to the core. Runs on the engine thread only, unless noted."""

    @property
    def slots(self) -> int:
        """The most jobs that can be active together. Constant after construction; any thread."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a call of `step` with all active jobs would do something. Any thread."""
        ...

    @property
    def active(self) -> Sequence[Job[W, C]]:
        """The jobs that hold a slot, in order of admission. A fresh sequence, to be kept."""
        ...

    def load(self) -> None:
        """Read the weights onto the device. Called once, before `warm`."""
        ...

    def warm(self, progress: Progress) -> None:
        """Compile and run every promised shape once. After it returns nothing compiles any more."""
        ...

    def validate(self, work: W) -> None:
        """Raise `InvalidRequest` if this can never be admitted, even alone. Pure; any thread."""
        ...

    def admit(self, job: Job[W, C]) -> bool:
        """Give the job a slot and all it can ever need, or return False and change nothing."""
        ...

    def step(self, jobs: Sequence[Job[W, C]]) -> None:
        """Advance these jobs (all of them active) by one turn; emit, finish, release the done.

        All or nothing: if it raises, no job has advanced, nothing was emitted, and the same jobs
        can be stepped again in smaller groups with the same results. That is what lets the host
        find the culprit.
        """
        ...

    def evict(self, job: Job[W, C]) -> None:
        """Release everything the job holds. No-op for a job that holds nothing."""
        ...

    def close(self) -> None:
        """Release the device. Called once, last."""
        ...


@runtime_checkable
class Describes(Protocol):
    """What an engine may offer besides: a look inside, for operators."""

    def describe(self) -> Mapping[str, object]:
        """What JSON can carry: `running` (what is told of each job, by its id), and whatever else
        the room has to tell (caches, warm shapes, precision).

        Any thread, also before `load` and after `close`. Never blocks, never asks a tensor for its
        values, never tells what a caller wrote. The engine goes on meanwhile: each value is true
        for itself, but two of them may be from before and after the same step.
        """
        ...
