"""Serves one engine to callers of any thread: submission, state, drain and stop.

`EngineHost` owns two threads. The engine thread runs `EngineLoop.run` and is the only one that
touches the engine, except for `engine.validate`. The watch thread answers jobs whose deadline
passes while the engine is inside a long step.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from predictors import metrics
from predictors.errors import (
    Draining,
    EngineFailed,
    InvalidRequest,
    NotReady,
    ServingError,
    ShapeNotWarm,
)
from predictors.serving.accounts import ANYONE, Caller
from predictors.serving.admission import UNKNOWN, costs_of
from predictors.serving.calls import Attachable
from predictors.serving.engine import Describes, Engine
from predictors.serving.estimates import Costs
from predictors.serving.job import Job
from predictors.serving.job_table import JobTable
from predictors.serving.lifecycle import HostEvents, Lifecycle, State
from predictors.serving.loop import EngineLoop
from predictors.serving.recording import Recorder, Recording
from predictors.settings import QueueSettings

W = TypeVar("W")
C = TypeVar("C")
T = TypeVar("T")

log = logging.getLogger(__name__)

# how long `stop` waits for a step that doesn't end: within the 15 s of a pod's grace period that
# follow the drain
JOIN_TIMEOUT_S = 3.0


def stack_of(thread: threading.Thread) -> str:
    """The calls that a thread is in, the innermost last; empty if it does not run. Any thread."""
    frame = sys._current_frames().get(thread.ident or 0)
    return "" if frame is None else "".join(traceback.format_stack(frame))


class EngineHost(Generic[W, C]):
    """One engine behind a bounded queue.

    `submit`, `reserve` and the properties: any thread. `wait_ready`, `drain` and `stop` block.
    Instead of `start`, a program may call `loop.load_and_warm` once and then `loop.run_once`: its
    thread is the engine thread.
    """

    def __init__(
        self,
        model: str,
        engine: Engine[W, C],
        settings: QueueSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.events = HostEvents()
        self._engine = engine
        self._settings = settings
        self._clock = clock
        self.was_ready = False
        """False until the first READY: a thread that does not end then is busy with the start."""
        self.lifecycle = Lifecycle(self._on_state)
        self.jobs: JobTable[W, C] = JobTable(
            model, engine.slots, engine.spare_slots, settings, clock, self._refusal
        )
        self.loop: EngineLoop[W, C] = EngineLoop(
            model, engine, self.jobs, self.lifecycle, self.events, clock
        )
        if isinstance(engine, Attachable):
            engine.attach(self)
        self._threads: list[threading.Thread] = []
        self._logged_stall: float | None = None
        self._start_lock = threading.Lock()

    # -- submission -----------------------------------------------------------------------------
    def check_accepting(
        self,
        rows: int,
        caller: Caller = ANYONE,
        costs: Costs = UNKNOWN,
        deadline: float | None = None,
    ) -> None:
        """Raise what `submit` of so many rows would raise now, before any work is spent on them.
        `costs` is the cost of all rows together, by kind of work; empty if unknown."""
        self.jobs.check_accepting(rows, caller, costs, deadline)

    def reserve(
        self,
        rows: int,
        caller: Caller = ANYONE,
        costs: Costs = UNKNOWN,
        deadline: float | None = None,
        least_costs: Costs | None = None,
    ) -> None:
        """Keep places for rows in preparation, until `submit` takes them over or `release` gives
        them back. Raises what `submit` would. `least_costs` are the costs of the rows if each ends
        as early as it can; by default `costs`."""
        self.jobs.reserve(rows, caller, costs, deadline, least_costs)

    def release(self, rows: int, caller: Caller = ANYONE) -> None:
        self.jobs.release(rows, caller)

    def submit(
        self,
        works: Sequence[W],
        *,
        request_id: str,
        deadline: float | None,
        caller: Caller = ANYONE,
        is_reserved: bool = False,
    ) -> list[Job[W, C]]:
        """Accept all rows of a request, or raise and accept none. `deadline` is in seconds of the
        host's clock. `is_reserved`: `reserve` has kept their places.

        Raises `InvalidRequest` (a row that could never run, more rows than may wait), `Overloaded`
        with a Retry-After, `DeadlineExceeded`, `NotReady`, `Draining`, `EngineFailed`.
        """
        if not is_reserved:
            self.jobs.check_accepting(len(works), caller, costs_of(works), deadline)
        try:
            self._validate(works)
        except (InvalidRequest, ShapeNotWarm) as error:
            metrics.admission_rejected_total.labels(self.model, error.reason).inc(len(works))
            raise
        ids = [request_id] if len(works) == 1 else [f"{request_id}/{i}" for i in range(len(works))]
        jobs: list[Job[W, C]] = [
            Job(job_id, work, deadline=deadline, clock=self._clock, caller=caller)
            for job_id, work in zip(ids, works, strict=True)
        ]
        self.jobs.accept(jobs, is_reserved=is_reserved)
        return jobs

    def _validate(self, works: Sequence[W]) -> None:
        for row, work in enumerate(works):
            try:
                self._engine.validate(work)
            except InvalidRequest as error:
                if len(works) == 1 or error.row is not None:
                    raise
                raise type(error)(error.message, param=error.param, row=row) from error

    def _refusal(self) -> ServingError | None:
        match self.lifecycle.state:
            case State.READY:
                return None
            case State.FAILED:
                return self.failure
            case State.DRAINING | State.STOPPED:
                return Draining(f"{self.model} is shutting down")
            case state:
                return NotReady(f"{self.model} is not ready: {state.value}")

    # -- state -----------------------------------------------------------------------------------
    @property
    def state(self) -> State:
        return self.lifecycle.state

    @property
    def failure(self) -> EngineFailed:
        return EngineFailed(self.loop.failure)

    @property
    def is_ready(self) -> bool:
        """True while requests are served: warm, as the engine understands it, alive, not
        draining."""
        return self.state is State.READY and self.is_alive

    @property
    def warming(self) -> tuple[int, int] | None:
        """Shapes that are warm, and all that are promised, while requests are served though some
        are not warm; else None."""
        plan = self.loop.plan
        is_over = self.state is not State.READY or plan is None or plan.is_over
        return None if plan is None or is_over else plan.counts

    @property
    def is_alive(self) -> bool:
        """False once the engine failed, lost its thread, or stalled. A slow start is alive."""
        if self.state is State.FAILED or self._is_stalled():
            return False
        is_over = self.state is State.STOPPED or not self._threads
        return is_over or self._threads[0].is_alive()

    def _is_stalled(self) -> bool:
        busy_since = self.jobs.busy_since
        if busy_since is None:
            return False
        last_sign_of_life = max(busy_since, self.loop.last_step_at)
        still_s = self._clock() - last_sign_of_life
        if still_s <= self._settings.stall_timeout_s:
            return False
        if self._logged_stall != last_sign_of_life:  # once each: probes ask again and again
            self._logged_stall = last_sign_of_life
            stack = "".join(map(stack_of, self._threads[:1]))
            log.error("%s: no step for %.0f s; its thread is in\n%s", self.model, still_s, stack)
        return True

    def _on_state(self, state: State) -> None:
        metrics.model_ready.labels(self.model).set(state is State.READY)
        self.was_ready |= state is State.READY
        log.info("%s is %s", self.model, state.value)
        for on_state in self.events.on_state:
            on_state(state)

    @property
    def is_left_behind(self) -> bool:
        """True if `stop` gave up on the engine thread, which still hangs in a call."""
        return self.state is State.STOPPED and any(t.is_alive() for t in self._threads)

    def describe(self) -> dict[str, object]:
        """State, jobs and the engine's own `describe` as JSON values. Any thread, never blocks."""
        shown: dict[str, Any] = {"state": self.state.value, **self.jobs.describe()}
        inside = self._engine
        engine: dict[str, Any] = dict(inside.describe()) if isinstance(inside, Describes) else {}
        details = engine.pop("running", {})
        for job in shown["running"]:
            job.update(details.get(job["id"], {}))
        return {**shown, **engine}

    def record(self, recorder: Recorder, steps: int) -> Recording:
        """Record the next `steps` steps. Any thread. Raises what `submit` would raise, and
        `Overloaded` while another recording is on."""
        refusal = self._refusal()
        if refusal is not None:
            raise refusal
        recording = Recording(recorder, steps, self.jobs.wake)
        self.loop.recordings.add(recording)
        return recording

    # -- for the engine's own methods ------------------------------------------------------------
    def call(self, function: Callable[[], T]) -> T:
        """As `EngineAccess`. Raises `NotReady` before `start`."""
        refusal = self._refusal()
        if refusal is not None and self.state not in {State.LOADING, State.WARMING}:
            raise refusal
        return self.loop.calls.run(function)

    def wait_until_unused(self, is_used: Callable[[W], bool]) -> None:
        self.jobs.wait_for_none(is_used)

    # -- life ------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start to load on the engine thread and return at once. Idempotent."""
        with self._start_lock:
            if self._threads or self.state is not State.NEW:
                return
            self._threads = [
                threading.Thread(target=self.loop.run, name=f"{self.model}-engine", daemon=True),
                threading.Thread(target=self._watch, name=f"{self.model}-watch", daemon=True),
            ]
            self.lifecycle.move(State.LOADING)  # here: a call that follows at once is not too early
            for thread in self._threads:
                thread.start()

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Block until every promised shape is warm. Raises `EngineFailed` when loading or warming
        failed, `Draining` when the host was stopped first, `NotReady` when `timeout_s` is over."""
        over = (State.READY, State.FAILED, State.DRAINING, State.STOPPED)
        self.lifecycle.wait_for(*over, timeout_s=timeout_s)
        refusal = self._refusal()
        if refusal is not None:
            raise refusal

    def drain(self, timeout_s: float) -> None:
        """Refuse new jobs and finish accepted ones; fail those left after `timeout_s` with
        `Draining`. Blocks until every job was answered. May be called again, also on another
        thread while it blocks: the earlier end wins."""
        self.lifecycle.move(State.DRAINING)
        if not self.jobs.wait_answered(timeout_s):
            left = self.jobs.open_jobs
            log.warning("%s: %d jobs not done after %g s of draining", self.model, left, timeout_s)
            message = f"{self.model} was shut down before this was done"
            self.jobs.fail_all(lambda: Draining(message))

    def stop(self, timeout_s: float = JOIN_TIMEOUT_S) -> None:
        """Fail the jobs that are left, close the engine on its own thread, and wait at most
        `timeout_s` for it. Idempotent."""
        self.drain(0.0)
        self.loop.stop()
        self.jobs.close()
        with self._start_lock:
            threads = [t for t in self._threads if t is not threading.current_thread()]
        deadline = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            if self.was_ready:
                log.error("%s: the engine thread is stuck, left behind", self.model)
            else:
                log.info("%s: its start is not over, and is left unfinished", self.model)
        if not self._threads:
            self.loop.close_engine()  # `loop.load_and_warm` may have been called without `start`
        self.lifecycle.move(State.STOPPED)

    def _watch(self) -> None:
        while self.jobs.wait_for_deadline():
            self.jobs.expire(self._clock())
