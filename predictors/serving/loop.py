"""The engine thread: load, warm up, then evict, admit and step until the host stops.

`EngineLoop.run` is the thread's target and `EngineLoop.run_once` is one round. A step that raises
has advanced no job, so the loop steps the same jobs again in halves until it has found those that
fail alone. All frames between the thread and `engine.step` are in this file.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from predictors import metrics
from predictors.errors import Draining, EngineFailed, OutOfMemory, ServingError, StepFailed
from predictors.serving.calls import EngineCalls
from predictors.serving.engine import Engine, StickyDeviceError, is_out_of_memory
from predictors.serving.job import Job
from predictors.serving.job_table import JobTable
from predictors.serving.lifecycle import HostEvents, Lifecycle, StartProgress, State
from predictors.serving.recording import Recordings
from predictors.serving.warm_plan import WarmPlan, WarmsLater
from predictors.serving.width_cap import WidthCap

W = TypeVar("W")
C = TypeVar("C")
T = TypeVar("T")

# Under traffic without a pause, seconds of steps between two shapes that are warmed after ready: at
# least these, and so many times what the last shape took. So warming gets a fifth of the time.
MIN_SERVING_S = 10.0
SERVING_PER_WARMING = 4

log = logging.getLogger(__name__)


def try_call(work: Callable[..., T], *args: Any) -> tuple[T | None, BaseException | None]:
    """Call `work`; return its value and None, or None and what it raised."""
    try:
        return work(*args), None
    except BaseException as error:  # noqa: BLE001 - the engine thread must outlive any error
        # the frames hold the engine's tensors: memory that a smaller step needs
        traceback.clear_frames(error.__traceback__)
        return None, error


class EngineLoop(Generic[W, C]):
    """Drives one engine for the jobs of one host. Engine thread only, unless noted.

    A program without an engine thread calls `load_and_warm` once, then `run_once`.
    """

    def __init__(
        self,
        model: str,
        engine: Engine[W, C],
        jobs: JobTable[W, C],
        lifecycle: Lifecycle,
        events: HostEvents,
        clock: Callable[[], float],
    ) -> None:
        self.recordings = Recordings()
        self.calls = EngineCalls(jobs.wake)
        self.last_step_at = clock()
        """When a step last began or ended, in seconds of `clock`. Any thread may read it."""
        self.failure = ""
        """Message of the error that ended the engine. Any thread may read it."""
        self._model = model
        self._engine = engine
        self._jobs = jobs
        self._lifecycle = lifecycle
        self._events = events
        self._clock = clock
        self._holds_device = False
        self._is_stopping = False
        self._phase = "warmup"
        most = engine.slots + engine.spare_slots
        self._cap = WidthCap(most, metrics.step_width_cap.labels(model).set)
        self._step_seconds = metrics.step_seconds.labels(model)
        self._steps = metrics.engine_steps_total.labels(model)
        self._last_step = metrics.engine_last_step_timestamp_seconds.labels(model)

    # -- the thread ------------------------------------------------------------------------------
    def run(self) -> None:
        """Prepare, run until `stop`, then release the device. Any error fails all jobs."""
        try:
            self.load_and_warm()
            self._serve_while_warming()
            while not self._is_stopping:
                if not self.run_once():
                    self._jobs.wait_for_change()
            self._evict_answered()
            self._close_requests(Draining(f"{self._model} is shutting down"))
        except BaseException as error:  # noqa: BLE001 - every job must be answered
            traceback.clear_frames(error.__traceback__)
            self._fail_host(error)
        self.close_engine()

    def run_once(self) -> bool:
        """Evict, run calls, admit, step once. Returns False when there was nothing to step.

        Raises `StickyDeviceError`, and whatever `engine.evict` raises: after either of them the
        engine's state is unknown and it can't go on.
        """
        self._jobs.expire(self._clock())
        self._evict_answered()
        self._run_calls()
        self._admit_waiting()
        jobs = self._engine.active
        if not jobs or not self._engine.busy:
            self.recordings.stop_ended()
            return False
        self.recordings.before_step()
        self._step(jobs)
        self.recordings.after_step()
        self._evict_answered()
        return True

    def _serve_while_warming(self) -> None:
        """Serve until the engine has warmed the shapes that it left for after ready. One is warmed
        whenever there is nothing to step, and now and then under traffic without a pause."""
        plan, due_at = self.plan, self._clock() + MIN_SERVING_S
        self._phase = "planned"
        while plan is not None and not plan.is_over and not self._is_stopping:
            is_idle = not self.run_once()
            began = self._clock()
            if self._lifecycle.state is State.READY and (is_idle or began >= due_at):
                self.last_step_at = began  # a shape counts as a step
                plan.warm_next(is_idle=is_idle)
                ended = self._clock()
                due_at = ended + max(MIN_SERVING_S, SERVING_PER_WARMING * (ended - began))
            elif is_idle:
                self._jobs.wait_for_change()
        if plan is not None and not self._is_stopping:
            self._call_warm()

    @property
    def plan(self) -> WarmPlan | None:
        """The shapes that the engine warms after ready. Any thread."""
        return self._engine.plan if isinstance(self._engine, WarmsLater) else None

    def stop(self) -> None:
        """Have `run` return after the present round. Any thread; the caller wakes the loop."""
        self._is_stopping = True

    # -- requests of other threads ---------------------------------------------------------------
    def _run_calls(self) -> None:
        while self.calls.waiting:
            call = self.calls.waiting.popleft()
            value, error = try_call(call.function)
            call.end(value, error)
            if isinstance(error, StickyDeviceError):
                raise error

    def _close_requests(self, error: ServingError) -> None:
        self.recordings.close(error)
        self.calls.close(error)

    # -- evict, admit, step ----------------------------------------------------------------------
    def _evict_answered(self) -> None:
        for job in self._jobs.running:
            if job.cancelled:
                job.abandon()
            if job.done:
                self._engine.evict(job)
                self._remove(job)

    def _remove(self, job: Job[W, C]) -> None:
        for on_ended in self._events.on_ended:
            on_ended(job)
        self._jobs.remove(job)

    def _admit_waiting(self) -> None:
        if not self._jobs.has_room():
            return
        admission = self._jobs.start_pass(self._clock())
        while (job := self._jobs.next_job(admission)) is not None:
            if not self._admit(job):
                admission.refuse(job)
        self._jobs.end_pass(admission)

    def _admit(self, job: Job[W, C]) -> bool:
        """Try to admit `job`. Returns False only if it must stay queued."""
        now = self._clock()
        if job.done or job.is_late(now):  # the watch answers it; it must not start
            return True
        is_admitted, error = try_call(self._engine.admit, job)
        if is_admitted:
            if not self._jobs.start_running(job, now):
                self._engine.evict(job)  # its caller left meanwhile
            return True
        if error is None:
            if self._jobs.open_jobs > self._jobs.waiting:
                return False
            # nothing runs, so no memory will come free
            error = RuntimeError("an empty engine turned away a job that it had found valid")
        self._fail_job(job, error)
        return True

    def _step(self, jobs: Sequence[Job[W, C]]) -> None:
        """Advance every job by one step, and fail the jobs that make a step fail on their own.

        A group that fails is halved: at most 2n - 1 steps for n jobs. After running out of memory
        later rounds step in narrower groups too; otherwise every round would pay for the failure
        again. If a single job did not fit, the width says nothing about the others.
        """
        cap = self._cap.width
        groups = [jobs] if cap is None else self._cap.groups(jobs)[::-1]  # a stack
        failed: list[tuple[Job[W, C], BaseException]] = []
        while groups:
            group = groups.pop()
            started = self.last_step_at = self._clock()
            _, error = try_call(self._engine.step, group)
            self.last_step_at = self._clock()
            if error is None:
                self._step_seconds.observe(self.last_step_at - started)
                self._steps.inc()
                self._last_step.set_to_current_time()
                if self._cap.width is not None:
                    self._cap.note_success(len(group))
            elif isinstance(error, StickyDeviceError):
                raise error
            elif len(group) == 1:
                failed.append((group[0], error))
            else:
                groups += self._halves(group, error)
        if self._cap.width is not None and not failed:
            self._cap.end_round(len(jobs))
        for job, error in failed:
            if is_out_of_memory(error):
                self._cap.reset(cap)
            self._fail_job(job, error)

    def _halves(
        self, group: Sequence[Job[W, C]], error: BaseException
    ) -> tuple[Sequence[Job[W, C]], Sequence[Job[W, C]]]:
        """The second and the first half of a group whose step raised `error`."""
        half = len(group) // 2
        is_oom = is_out_of_memory(error)
        metrics.batch_splits_total.labels(self._model, "oom" if is_oom else "other").inc()
        if is_oom:  # any other error is logged with the job that causes it
            self._cap.note_failure(len(group))
            log_fields = {"model": self._model, "jobs": len(group)}
            message = "%s: a step of %d jobs did not fit into memory, it is halved"
            log.warning(message, self._model, len(group), extra=log_fields)
        return group[half:], group[:half]

    def _fail_job(self, job: Job[W, C], error: BaseException) -> None:
        """Answer `job` with the failure for `error`, evict and remove it. Raises a
        `StickyDeviceError` again: no job is the cause of it."""
        if isinstance(error, StickyDeviceError):
            raise error
        log_fields = {"model": self._model, "request_id": job.id.partition("/")[0], "job": job.id}
        log_fields |= job.exemplar or {}  # this thread has no trace of its own
        log.error("%s: job %s failed alone", self._model, job.id, exc_info=error, extra=log_fields)
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
        self._remove(job)

    # -- start and end ---------------------------------------------------------------------------
    def load_and_warm(self) -> None:
        """Load and warm the engine and become ready, unless the host drains meanwhile. Once."""
        self._lifecycle.move(State.LOADING)  # the host's `start` did so already
        if self._lifecycle.state is not State.LOADING:
            return
        self._holds_device = True
        self._timed("load", self._engine.load)
        if self._lifecycle.move(State.WARMING):
            self._timed("warmup", self._engine.warm, self._report_shape)
            self._call_warm()
            self._lifecycle.move(State.READY)

    def _call_warm(self) -> None:
        for on_warm in self._events.on_warm:
            on_warm()

    def _timed(self, phase: str, work: Callable[..., None], *args: Any) -> None:
        self._report(StartProgress(phase))
        started = self._clock()
        work(*args)
        seconds = self._clock() - started
        metrics.model_phase_seconds.labels(self._model, phase).set(seconds)
        log.info("%s: %s took %.2f s", self._model, phase, seconds)

    def _report_shape(self, shape: str, done: int, total: int) -> None:
        self.last_step_at = self._clock()
        self._report(StartProgress(self._phase, shape, done, total))

    def _report(self, progress: StartProgress) -> None:
        for on_progress in self._events.on_progress:
            _, error = try_call(on_progress, progress)
            if error is not None:
                log.error("%s: on_progress raised", self._model, exc_info=error)

    def close_engine(self) -> None:
        """Close the engine if `load_and_warm` has begun. Idempotent."""
        if not self._holds_device:
            return
        self._holds_device = False
        _, error = try_call(self._engine.close)
        if error is not None:
            log.error("%s: closing the engine failed", self._model, exc_info=error)

    def _fail_host(self, error: BaseException) -> None:
        """The engine can't go on: accept no more jobs, answer all, then call `on_failed`."""
        phase = self._lifecycle.state.value
        if isinstance(error, ServingError):  # raised on purpose: its message is complete
            self.failure = f"{self._model} failed while {phase}: {error.message}"
        else:
            self.failure = f"{self._model} failed while {phase}; the server's log says why"
            log.critical("%s failed", self._model, exc_info=error)
        metrics.engine_failures_total.labels(self._model).inc()
        self._lifecycle.move(State.FAILED)
        self._close_requests(EngineFailed(self.failure))
        self._jobs.fail_all(lambda: EngineFailed(self.failure))
        self._jobs.remove_running()
        for on_failed in self._events.on_failed:
            _, failed = try_call(on_failed, EngineFailed(self.failure))
            if failed is not None:
                log.error("%s: on_failed raised", self._model, exc_info=failed)
