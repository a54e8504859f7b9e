"""Owns the engine thread: load, warm, then turn after turn until the end.

Only this thread touches the engine (but for `validate`). Whatever escapes from a turn ends
everything: all in flight fail, and the owner of the process is told. The second thread, the watch,
only answers those whose deadline comes while the engine is inside a long step. The one broad
`except` of the house is here (`attempt`).
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from predictors import metrics
from predictors.errors import Draining, EngineFailed, InvalidRequest, NotReady, ServingError
from predictors.serving.engine import Describes, Engine
from predictors.serving.job import Job
from predictors.serving.lifecycle import Lifecycle, State, Warmth
from predictors.serving.recording import Recorder, Recording
from predictors.serving.roster import Roster
from predictors.serving.turns import Turns
from predictors.settings import QueueSettings

W = TypeVar("W")
C = TypeVar("C")

log = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 30.0  # how long `stop` waits for a step that doesn't end


def attempt(work: Callable[..., object], *args: Any) -> BaseException | None:
    """Do `work` and return what it raised, or None: the engine thread must outlive it."""
    try:
        work(*args)
    except BaseException as error:  # noqa: BLE001 - this is the one place
        # the frames hold the engine's tensors: memory that a smaller try needs
        traceback.clear_frames(error.__traceback__)
        return error
    return None


class EngineHost(Generic[W, C]):
    """One engine behind a bounded queue.

    `submit`, `reserve` and the properties: any thread. `wait_ready`, `drain` and `stop` block.
    Without `start`, a program may call `prepare` once, then `turn`: its thread is the engine's.
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
        self.on_failed: Callable[[EngineFailed], None] | None = None
        """Called once, on the engine thread, after all were answered: the process should end."""
        self.on_progress: Callable[[Warmth], object] = lambda progress: None
        """Called on the engine thread whenever `progress` changes."""
        self.on_state: Callable[[State], object] = lambda state: None
        """Called after each change of `state`, on the thread that made it. Must not raise."""
        self._engine = engine
        self._settings = settings
        self._clock = clock
        self._lifecycle = Lifecycle(self._on_state)
        self._roster: Roster[W, C] = Roster(model, engine.slots, settings, clock, self._refusal)
        self._turns: Turns[W, C] = Turns(model, engine, self._roster, clock, attempt)
        self._failure = ""
        self.on_warm: Callable[[], object] = lambda: None
        """Called once on the engine thread, before anybody is served."""
        self._progress = Warmth()
        self._is_stopping = False
        self._holds_device = False
        self._threads: list[threading.Thread] = []
        self._start_lock = threading.Lock()

    # -- what callers use ------------------------------------------------------------------------
    def check_accepting(self, rows: int) -> None:
        """Raise what `submit` of so many rows would raise now, before they cost anything."""
        self._roster.check(rows)

    def reserve(self, rows: int) -> None:
        """Keep places for rows that are prepared, until `release`. Raises what `submit` would."""
        self._roster.reserve(rows)

    def release(self, rows: int) -> None:
        """Keep the places no longer."""
        self._roster.release(rows)

    def submit(
        self,
        works: Sequence[W],
        *,
        request_id: str,
        deadline: float | None,
        is_reserved: bool = False,
    ) -> list[Job[W, C]]:
        """Accept all rows of a request, or raise and accept none; `is_reserved` after `reserve`.
        `deadline` is in seconds of the host's clock. Any thread.

        Raises `InvalidRequest` (a row that could never run, more rows than may wait), `Overloaded`
        with a Retry-After, `DeadlineExceeded`, `NotReady`, `Draining`, `EngineFailed`.
        """
        if not is_reserved:
            self._roster.check(len(works))
        try:
            self._validate(works)
        except InvalidRequest as error:
            metrics.admission_rejected_total.labels(self.model, error.reason).inc(len(works))
            raise
        ids = [request_id] if len(works) == 1 else [f"{request_id}/{i}" for i in range(len(works))]
        jobs: list[Job[W, C]] = [
            Job(job_id, work, deadline=deadline, clock=self._clock)
            for job_id, work in zip(ids, works, strict=True)
        ]
        self._roster.accept(jobs, is_reserved=is_reserved)
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
        match self._lifecycle.state:
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
        return self._lifecycle.state

    @property
    def progress(self) -> Warmth:
        """How far the start has come."""
        return self._progress

    @property
    def failure(self) -> EngineFailed:
        """What callers are told once the engine failed."""
        return EngineFailed(self._failure)

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return self._roster.waiting

    @property
    def running(self) -> int:
        """Jobs that hold a slot."""
        return self._roster.open_jobs - self._roster.waiting

    @property
    def is_ready(self) -> bool:
        """Whether a request sent now would be served: warm, alive, not draining."""
        return self.state is State.READY and self.is_alive

    @property
    def is_alive(self) -> bool:
        """False once the engine failed, lost its thread, or stalled. A slow start is alive."""
        if self.state is State.FAILED or self._is_stalled():
            return False
        is_over = self.state is State.STOPPED or not self._threads
        return is_over or self._threads[0].is_alive()

    def _is_stalled(self) -> bool:
        busy_since = self._roster.busy_since
        if busy_since is None:
            return False
        return self._clock() - max(busy_since, self._turns.beat) > self._settings.stall_timeout_s

    def _on_state(self, state: State) -> None:
        metrics.model_ready.labels(self.model).set(state is State.READY)
        log.info("%s is %s", self.model, state.value)
        self.on_state(state)

    def wake(self) -> None:
        """Look at the clock again."""
        self._roster.wake()

    def describe(self) -> dict[str, object]:
        """What an operator may see, see `Describes`. Any thread, never waits for the engine."""
        shown: dict[str, Any] = {"state": self.state.value, **self._roster.describe()}
        inside = self._engine
        engine: dict[str, Any] = dict(inside.describe()) if isinstance(inside, Describes) else {}
        details = engine.pop("running", {})
        for job in shown["running"]:
            job.update(details.get(job["id"], {}))
        return {**shown, **engine}

    def record(self, recorder: Recorder, steps: int) -> Recording:
        """Record the next `steps` steps, see `recording`. Any thread. Raises what `submit` would,
        and `Overloaded` while another recording is on."""
        refusal = self._refusal()
        if refusal is not None:
            raise refusal
        recording = Recording(recorder, steps, self._roster.wake)
        self._turns.recordings.begin(recording)
        return recording

    # -- life ------------------------------------------------------------------------------------
    def start(self) -> None:
        """Begin to load on the engine thread and return at once. Idempotent."""
        with self._start_lock:
            if self._threads or self.state is not State.NEW:
                return
            self._threads = [
                threading.Thread(target=self._run, name=f"{self.model}-engine", daemon=True),
                threading.Thread(target=self._watch, name=f"{self.model}-watch", daemon=True),
            ]
            for thread in self._threads:
                thread.start()

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Block until every promised shape is warm. Raises `EngineFailed` when loading or warming
        failed, `Draining` when the host was stopped first, `NotReady` when `timeout_s` is over."""
        over = (State.READY, State.FAILED, State.DRAINING, State.STOPPED)
        self._lifecycle.wait_for(*over, timeout_s=timeout_s)
        refusal = self._refusal()
        if refusal is not None:
            raise refusal

    def wait_for(self, *states: State, timeout_s: float | None = None) -> State | None:
        """See `Lifecycle.wait_for`."""
        return self._lifecycle.wait_for(*states, timeout_s=timeout_s)

    def wait_idle(self, timeout_s: float) -> bool:
        """Whether nobody waits or runs any more, waiting for it at most `timeout_s`."""
        return self._roster.wait_empty(timeout_s)

    def drain(self, timeout_s: float) -> None:
        """Refuse what is new, finish what was accepted; after `timeout_s` fail what is left with
        `Draining`. Blocks until everybody was answered. May be called again, also while it runs: a
        shorter timeout wins."""
        self._lifecycle.move(State.DRAINING)
        if not self._roster.wait_answered(timeout_s):
            left = self._roster.open_jobs
            log.warning("%s: %d jobs not done after %g s of draining", self.model, left, timeout_s)
            message = f"{self.model} was shut down before this was done"
            self._roster.fail_all(lambda: Draining(message))

    def stop(self, timeout_s: float = JOIN_TIMEOUT_S) -> None:
        """Fail what is left, close the engine on its own thread, wait `timeout_s` for it.
        Idempotent."""
        self.drain(0.0)
        self._is_stopping = True
        self._roster.close()
        with self._start_lock:
            threads = [t for t in self._threads if t is not threading.current_thread()]
        deadline = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            log.error("%s: the engine thread is stuck, left behind", self.model)
        if not self._threads:
            self._close_engine()  # `prepare` may have been called without `start`
        self._lifecycle.move(State.STOPPED)

    # -- the threads -----------------------------------------------------------------------------
    def _run(self) -> None:
        error = attempt(self._serve)
        if error is not None:
            self._die(error)
        self._close_engine()

    def _close_engine(self) -> None:
        if not self._holds_device:
            return
        self._holds_device = False
        error = attempt(self._engine.close)
        if error is not None:
            log.error("%s: closing the engine failed", self.model, exc_info=error)

    def _serve(self) -> None:
        self.prepare()
        while not self._is_stopping:
            if not self.turn():
                self._roster.wait_for_change()
        self._turns.clear_out()
        self._turns.recordings.close(Draining(f"{self.model} is shutting down"))

    def _watch(self) -> None:
        while self._roster.wait_for_deadline():
            self._roster.expire(self._clock())

    def prepare(self) -> None:
        """Load, warm, be ready, unless somebody began to drain. Engine thread, once."""
        self._lifecycle.move(State.LOADING)
        self._holds_device = True
        self._phase("load", self._engine.load)
        if self._lifecycle.move(State.WARMING):
            self._phase("warmup", self._engine.warm, self._show_warmth)
            self.on_warm()
            self._lifecycle.move(State.READY)

    def _phase(self, phase: str, work: Callable[..., None], *args: Any) -> None:
        self._show_progress(Warmth(phase))
        started = self._clock()
        work(*args)
        seconds = self._clock() - started
        metrics.model_phase_seconds.labels(self.model, phase).set(seconds)
        log.info("%s: %s took %.2f s", self.model, phase, seconds)

    def _show_warmth(self, shape: str, done: int, total: int) -> None:
        self._show_progress(Warmth("warmup", shape, done, total))

    def _show_progress(self, progress: Warmth) -> None:
        self._progress = progress
        error = attempt(self.on_progress, progress)
        if error is not None:
            log.error("%s: on_progress raised", self.model, exc_info=error)

    def turn(self) -> bool:
        """One turn of the engine thread, see `Turns.take`; whether there was anything to step."""
        return self._turns.take()

    # -- the end ---------------------------------------------------------------------------------
    def _die(self, error: BaseException) -> None:
        """Nothing can go on: refuse, answer everybody, tell the owner."""
        phase = self.state.value
        if isinstance(error, ServingError):  # raised on purpose: the sentence says it all
            self._failure = f"{self.model} failed while {phase}: {error.message}"
        else:
            self._failure = f"{self.model} failed while {phase}; the server's log says why"
            log.critical("%s failed", self.model, exc_info=error)
        metrics.engine_failures_total.labels(self.model).inc()
        self._lifecycle.move(State.FAILED)
        self._turns.recordings.close(self.failure)
        self._roster.fail_all(lambda: self.failure)
        self._roster.dismiss()
        if self.on_failed and (failed := attempt(self.on_failed, self.failure)):
            log.error("%s: on_failed raised", self.model, exc_info=failed)
