"""One turn of the engine thread: evict the dead, admit what fits, step once.

Also decides what an exception means for whom: a job that fails alone is answered alone, one that
the engine can't even seat is answered before it starts, a lost device is nobody's fault and is
raised to the host. Knows no thread and no state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from predictors import metrics
from predictors.errors import OutOfMemory, ServingError, StepFailed
from predictors.serving.engine import Engine, StickyDeviceError
from predictors.serving.isolation import Isolation, is_out_of_memory
from predictors.serving.job import Job
from predictors.serving.recording import Recordings
from predictors.serving.roster import Roster

W = TypeVar("W")
C = TypeVar("C")

log = logging.getLogger(__name__)


class Turns(Generic[W, C]):
    """The engine's side of the roster. Engine thread only, but for `beat`.

    `attempt(work, *args)` does `work` and returns what it raised, or None. `take` raises
    `StickyDeviceError`, and whatever `evict` raises: after that nobody knows what the engine holds.
    """

    def __init__(
        self,
        model: str,
        engine: Engine[W, C],
        roster: Roster[W, C],
        clock: Callable[[], float],
        attempt: Callable[..., BaseException | None],
    ) -> None:
        self.beat = clock()
        """When a step last began or ended. Any thread may read it."""
        self._model = model
        self._engine = engine
        self._roster = roster
        self._clock = clock
        self._attempt = attempt
        self._isolation: Isolation[Job[W, C]] = Isolation(self._attempt_step, self._count_split)
        self.recordings = Recordings(attempt)
        """Of steps, see `recording`."""
        self._step_seconds = metrics.step_seconds.labels(model)
        self._steps = metrics.engine_steps_total.labels(model)
        self._last_step = metrics.engine_last_step_timestamp_seconds.labels(model)

    def take(self) -> bool:
        """Evict the dead, admit what fits, step once; whether there was anything to step."""
        self._roster.expire(self._clock())
        self.clear_out()
        self._admit()
        jobs = self._engine.active
        if not jobs or not self._engine.busy:
            self.recordings.settle()
            return False
        self.recordings.before_step()
        self._step(jobs)
        self.recordings.after_step()
        self.clear_out()
        return True

    def clear_out(self) -> None:
        """Whoever was answered or has left gives the slot back."""
        for job in self._roster.running:
            if job.cancelled:
                job.abandon()
            if job.done:
                self._engine.evict(job)
                self._roster.leave(job)
                self._isolation.reset()

    def _admit(self) -> None:
        if not (self._roster.waiting and self._roster.has_free_slot()):
            return
        walk = self._roster.walk(self._clock())
        for job in walk:
            if not self._roster.has_free_slot():
                break
            if not self._offer(job):
                walk.refuse(job)
        self._roster.end_walk(walk)

    def _offer(self, job: Job[W, C]) -> bool:
        """False when the job has to go on waiting; else it runs, or is answered, or will be now."""
        now = self._clock()
        if job.done or job.is_late(now):  # the watch answers it; it must not start
            return True
        verdict: list[bool] = []
        error = self._attempt(lambda: verdict.append(self._engine.admit(job)))
        if error is None and verdict[0]:
            if not self._roster.seat(job, now):
                self._engine.evict(job)  # it left while it was being seated
            return True
        if error is None and self._roster.open_jobs > self._roster.waiting:
            return False
        if error is None:  # nobody runs, so nothing will ever get better
            error = RuntimeError("an empty engine turned away a job that it had found valid")
        self._fail(job, error)
        return True

    def _fail(self, job: Job[W, C], error: BaseException) -> None:
        if isinstance(error, StickyDeviceError):
            raise error
        whose = {"model": self._model, "request_id": job.id.partition("/")[0], "job": job.id}
        whose |= job.exemplar or {}  # this thread serves no request: the job knows its trace
        log.error("%s: job %s failed alone", self._model, job.id, exc_info=error, extra=whose)
        failure: ServingError
        if isinstance(error, ServingError):
            failure = error
        elif is_out_of_memory(error):
            failure = OutOfMemory(
                "the device has no memory for this request, even alone; make it smaller"
            )
        else:
            failure = StepFailed("this request made the engine fail; others were not affected")
        failure.__cause__ = error if failure is not error else error.__cause__
        job.fail(failure)
        self._engine.evict(job)
        self._roster.leave(job)

    def _step(self, jobs: Sequence[Job[W, C]]) -> None:
        for job, error in self._isolation.step(jobs).items():
            self._fail(job, error)

    def _count_split(self, jobs: int, is_oom: bool) -> None:
        metrics.batch_splits_total.labels(self._model, "oom" if is_oom else "other").inc()
        if is_oom:  # else whoever is found has a line of its own
            whose = {"model": self._model, "jobs": jobs}
            message = "%s: a step of %d jobs did not fit into memory, it is halved"
            log.warning(message, self._model, jobs, extra=whose)

    def _attempt_step(self, jobs: Sequence[Job[W, C]]) -> BaseException | None:
        started = self.beat = self._clock()
        error = self._attempt(self._engine.step, jobs)
        self.beat = self._clock()
        if error is None:
            self._step_seconds.observe(self.beat - started)
            self._steps.inc()
            self._last_step.set_to_current_time()
        return error
