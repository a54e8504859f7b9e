"""Engines and a clock that a test controls, and functions that read the answers of jobs.

`ScriptedEngine` takes a step only when the test allows one, records every call, and refuses,
raises or runs out of memory on demand. `EchoEngine` runs freely and as cheaply as an engine can,
for HTTP tests and the no-op benchmark. Both keep the contract of `Engine.step`: if it raises, no
job has advanced.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from predictors.errors import InvalidRequest
from predictors.serving.engine import Progress
from predictors.serving.host import EngineHost
from predictors.serving.job import Job

W = TypeVar("W")
C = TypeVar("C")

PATIENCE_S = 180.0
"""How long a test waits for a thread before it fails. A test that passes never waits that long,
even on a busy machine."""


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's error, by which the host recognises it."""


@dataclass(frozen=True, slots=True)
class Task:
    """Work that takes `steps` steps, emits `name:1` ... `name:steps` and reserves `size` units.
    Each step takes `step_s` of the engine's clock, if it has one."""

    name: str
    steps: int = 1
    size: int = 1
    step_s: float = 0.0

    @property
    def chunks(self) -> list[str]:
        """The chunks that its caller must get: no step twice, none missing."""
        return [f"{self.name}:{i}" for i in range(1, self.steps + 1)]


class ScriptedClock:
    """Monotonic seconds that pass only in `advance`, which then calls the `listeners`."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self.listeners: list[Callable[[], None]] = []

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for listener in self.listeners:
            listener()


class ScriptedEngine:
    """An engine for `Task`s that the test controls.

    Engine thread: the methods of `predictors.serving.engine.Engine`. Test thread: `allow`,
    `take_steps`, `open`, `wait_in_step`, and these attributes, which may be changed at any time:

    poison      name of a task -> exception that every step with this task raises
    refuse      names of tasks that `admit` refuses
    oom_width   a step with more jobs than this runs out of memory
    raise_in    method ("load", "warm", "admit", "evict", "close") -> exception
    hold        methods ("load", "warm") that wait until `release(method)`
    budget      units that all active tasks may reserve together; None is no limit
    clock       a scripted clock that its steps advance
    calls       in order: ("load",), ("admit", name), ("step", name, ...), ("evict", name), ...

    A step advances at most `slots` jobs, those first whose callers have used least, and charges
    each of them an equal part of the time that it took.
    """

    def __init__(
        self,
        slots: int = 4,
        *,
        spare_slots: int = 0,
        budget: int | None = None,
        clock: ScriptedClock | None = None,
        gated: bool = True,
        hold: Sequence[str] = (),
        warm_shapes: Sequence[str] = ("small", "large"),
    ) -> None:
        self.slots = slots
        self.spare_slots = spare_slots
        self.budget = budget
        self.clock = clock
        self.warm_shapes = list(warm_shapes)
        self.poison: dict[str, BaseException] = {}
        self.refuse: set[str] = set()
        self.oom_width: int | None = None
        self.raise_in: dict[str, BaseException] = {}
        self.calls: list[tuple[str, ...]] = []
        self._held = {verb: threading.Event() for verb in hold}
        self._positions: dict[Job[Task, str], int] = {}
        self._gate = threading.Condition()
        self._permits = 0
        self._open = not gated
        self._entered = 0
        self._left = 0

    # -- Engine ------------------------------------------------------------------------------------
    @property
    def busy(self) -> bool:
        return bool(self._positions)

    @property
    def active(self) -> Sequence[Job[Task, str]]:
        return list(self._positions)

    def load(self) -> None:
        self._note("load")

    def warm(self, progress: Progress) -> None:
        self._note("warm")
        for done, shape in enumerate(self.warm_shapes, 1):
            progress(shape, done, len(self.warm_shapes))

    def validate(self, work: Task) -> None:
        if self.budget is not None and work.size > self.budget:
            raise InvalidRequest(f"size {work.size} exceeds {self.budget}", param="size")

    def admit(self, job: Job[Task, str]) -> bool:
        self._note("admit", job.work.name)
        reserved = sum(other.work.size for other in self._positions)
        if len(self._positions) >= self.slots + self.spare_slots or job.work.name in self.refuse:
            return False
        if self.budget is not None and reserved + job.work.size > self.budget:
            return False
        self._positions[job] = 0
        return True

    def step(self, jobs: Sequence[Job[Task, str]]) -> None:
        assert jobs, "a step without jobs"
        assert all(job in self._positions for job in jobs), "a step for a job that holds no slot"
        jobs = self._in_turn(jobs)
        started = jobs[0].clock()
        self._pass_gate()
        try:
            self.calls.append(("step", *(job.work.name for job in jobs)))
            self._raise_if_poisoned(jobs)
            if self.clock is not None:
                self.clock.now += sum(job.work.step_s for job in jobs)
            seconds = jobs[0].clock() - started
            for job in jobs:
                charge(job, seconds / len(jobs))
                self._advance(job)
        finally:
            with self._gate:
                self._left += 1
                self._gate.notify_all()

    def evict(self, job: Job[Task, str]) -> None:
        if self._positions.pop(job, None) is not None:
            self._note("evict", job.work.name)

    def close(self) -> None:
        self._note("close")

    def _in_turn(self, jobs: Sequence[Job[Task, str]]) -> Sequence[Job[Task, str]]:
        """At most `slots` of them, in their order."""
        first = sorted(jobs, key=lambda job: job.account.used_s)[: self.slots]
        return jobs if len(jobs) <= self.slots else [job for job in jobs if job in first]

    def _advance(self, job: Job[Task, str]) -> None:
        self._positions[job] += 1
        job.emit(f"{job.work.name}:{self._positions[job]}")
        if self._positions[job] == job.work.steps:
            del self._positions[job]
            job.finish()

    def _raise_if_poisoned(self, jobs: Sequence[Job[Task, str]]) -> None:
        for job in jobs:
            if job.work.name in self.poison:
                raise self.poison[job.work.name]
        if self.oom_width is not None and len(jobs) > self.oom_width:
            raise OutOfMemoryError(f"tried to allocate for {len(jobs)} jobs")

    def _note(self, verb: str, *names: str) -> None:
        self.calls.append((verb, *names))
        if verb in self._held:
            assert self._held[verb].wait(PATIENCE_S), f"the test never released {verb}"
        if verb in self.raise_in:
            raise self.raise_in[verb]

    def _pass_gate(self) -> None:
        with self._gate:
            self._entered += 1
            self._gate.notify_all()
            allowed = self._gate.wait_for(lambda: self._open or self._permits > 0, PATIENCE_S)
            assert allowed, "the test never allowed this step"
            self._permits -= 0 if self._open else 1

    # -- the test's side ---------------------------------------------------------------------------
    def allow(self, steps: int = 1) -> None:
        """Let the next `steps` calls of `step` pass; returns at once."""
        with self._gate:
            self._permits += steps
            self._gate.notify_all()

    def take_steps(self, steps: int = 1) -> None:
        """Let `steps` calls of `step` pass and return once they are over."""
        with self._gate:
            goal = self._left + steps
            self._permits += steps
            self._gate.notify_all()
            assert self._gate.wait_for(lambda: self._left >= goal, PATIENCE_S), "no step was taken"

    def open(self) -> None:
        """Let all calls pass from now on: steps, load and warm."""
        with self._gate:
            self._open = True
            self._gate.notify_all()
        for event in self._held.values():
            event.set()

    def release(self, verb: str) -> None:
        """Let a held `load` or `warm` go on."""
        self._held[verb].set()

    def wait_in_step(self) -> None:
        """Return once a step has started that is still held."""
        with self._gate:
            inside = self._gate.wait_for(lambda: self._entered > self._left, PATIENCE_S)
            assert inside, "no step was started"

    @property
    def steps(self) -> list[tuple[str, ...]]:
        """The names of the tasks in each call of `step`, also of calls that raised."""
        return [call[1:] for call in list(self.calls) if call[0] == "step"]


class EchoEngine(Generic[W, C]):
    """A free-running engine: a job takes `steps(work)` steps and emits `chunk(work, i)` after the
    i-th.

    `chunk` may return None to emit nothing. `check` is `validate`. The defaults answer each work
    with itself in one step, which makes it the no-op engine of the benchmarks.
    """

    def __init__(
        self,
        slots: int = 8,
        *,
        steps: Callable[[W], int] = lambda work: 1,
        chunk: Callable[[W, int], C | None] | None = None,
        check: Callable[[W], None] = lambda work: None,
        shapes: Sequence[str] = ("echo",),
    ) -> None:
        self.slots = slots
        self.spare_slots = 0
        self._steps = steps
        self._chunk = chunk or self._echo
        self._check = check
        self._shapes = shapes
        self._positions: dict[Job[W, C], int] = {}

    def _echo(self, work: W, position: int) -> Any:
        return work if position == self._steps(work) else None

    @property
    def busy(self) -> bool:
        return bool(self._positions)

    @property
    def active(self) -> Sequence[Job[W, C]]:
        return list(self._positions)

    def load(self) -> None:
        """Nothing to read."""

    def warm(self, progress: Progress) -> None:
        for done, shape in enumerate(self._shapes, 1):
            progress(shape, done, len(self._shapes))

    def validate(self, work: W) -> None:
        self._check(work)

    def admit(self, job: Job[W, C]) -> bool:
        if len(self._positions) >= self.slots:
            return False
        self._positions[job] = 0
        return True

    def step(self, jobs: Sequence[Job[W, C]]) -> None:
        # all or nothing: what a test's `chunk` raises, it raises before a position changes
        started = time.monotonic()
        chunks = [self._chunk(job.work, self._positions[job] + 1) for job in jobs]
        seconds = (time.monotonic() - started) / len(jobs)
        for job, chunk in zip(jobs, chunks, strict=True):
            self._positions[job] += 1
            charge(job, seconds)
            if chunk is not None:
                job.emit(chunk)
            if self._positions[job] >= self._steps(job.work):
                del self._positions[job]
                job.finish()

    def evict(self, job: Job[W, C]) -> None:
        self._positions.pop(job, None)

    def close(self) -> None:
        self._positions.clear()


def wait_idle(host: EngineHost[Any, Any], patience_s: float = PATIENCE_S) -> None:
    """Return once no job waits or holds a slot: by then all are counted."""
    removed = host.jobs.removed
    with removed:
        assert removed.wait_for(lambda: host.jobs.open_jobs == 0, patience_s), "jobs are left"


def charge(job: Job[Any, Any], seconds: float) -> None:
    """Count engine seconds on a job and its caller."""
    job.used_s += seconds
    job.account.charge(seconds)


async def stream(job: Job[Any, C]) -> AsyncIterator[C]:
    """The chunks of `job`, one by one; raises its failure."""
    news = asyncio.Event()
    job.attach(news.set)
    while (chunks := job.take()) is not None:
        for chunk in chunks:
            yield chunk
        if not chunks:
            await news.wait()
            news.clear()


async def read(job: Job[Any, C]) -> list[C]:
    """All chunks of `job`, once it is answered; raises its failure."""
    return [chunk async for chunk in stream(job)]


def answer(job: Job[Any, C], patience_s: float = PATIENCE_S) -> list[C]:
    """All chunks of `job`, read from a new loop. Raises its failure, or TimeoutError."""
    return asyncio.run(asyncio.wait_for(read(job), patience_s))


def unread(job: Job[Any, C]) -> list[C]:
    """The chunks that were emitted and not read yet, without waiting."""
    return list(job._chunks)


def failure(job: Job[Any, Any], patience_s: float = PATIENCE_S) -> Exception:
    """The failure of `job`; AssertionError if it succeeded."""
    try:
        chunks = answer(job, patience_s)
    except TimeoutError:
        raise
    except Exception as error:  # noqa: BLE001 - the test inspects it
        return error
    raise AssertionError(f"{job.id} was answered with {chunks!r}")
