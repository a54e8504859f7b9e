"""Recording some steps of live traffic: begun and ended between steps, on the engine thread. Knows
no profiler.

Whoever asks hands in a `Recorder` and waits for `Recording.outcome`. The recorder is started just
before the next step, so that one who waits for traffic costs nothing, and stopped after the last
one, or when the asker calls `end`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from predictors.errors import Overloaded, ServingError

log = logging.getLogger(__name__)


class Recorder(Protocol):
    """Writes down what the thread that calls it does. Engine thread only."""

    def start(self) -> None:
        """From now on everything is written down."""
        ...

    def before_step(self) -> None:
        """A step begins."""
        ...

    def after_step(self) -> None:
        """The step that began has ended."""
        ...

    def stop(self) -> None:
        """Nothing is written down any more. Quick: a report is made elsewhere."""
        ...


class Recording:
    """A wish for `steps` recorded steps."""

    def __init__(self, recorder: Recorder, steps: int, wake: Callable[[], None]) -> None:
        self.recorder = recorder
        self.steps = steps
        self.outcome: Future[int] = Future()
        """How many steps were recorded, once the recorder has stopped; or why there are none."""
        self.outcome.set_running_or_notify_cancel()  # nobody can cancel it
        self.is_ending = False
        self.is_started = False
        self.taken = 0
        self._wake = wake

    def end(self) -> None:
        """Take no more steps: `outcome` is there after the present one. Any thread."""
        self.is_ending = True
        self._wake()


class Recordings:
    """The engine thread's side: at most one recording at a time.

    `attempt(work, *args)` does `work` and returns what it raised, or None: a recorder that fails
    ends its recording and nothing else.
    """

    def __init__(self, attempt: Callable[..., BaseException | None]) -> None:
        self._attempt = attempt
        self._lock = threading.Lock()
        self._current: Recording | None = None
        self._closed: ServingError | None = None

    def begin(self, recording: Recording) -> None:
        """Record from the next step on. Any thread. Raises `Overloaded` while another is on, and
        what `close` was told."""
        with self._lock:
            if self._closed is not None:
                raise self._closed
            if self._current is not None:
                raise Overloaded("this engine is being recorded already; try again later")
            self._current = recording

    # -- the engine thread -----------------------------------------------------------------------
    def before_step(self) -> None:
        """A step is about to begin."""
        self.settle()
        current = self._current
        if current is None:
            return
        if not current.is_started:
            current.is_started = True
            self._do(current, current.recorder.start)
        self._do(current, current.recorder.before_step)

    def after_step(self) -> None:
        """The step that was about to begin has ended."""
        current = self._current
        if current is None or not current.is_started:
            return
        self._do(current, current.recorder.after_step)
        current.taken += 1
        if current.taken == current.steps:
            current.is_ending = True
        self.settle()

    def settle(self) -> None:
        """Between steps: stop what was told to end."""
        current = self._current
        if current is not None and current.is_ending:
            self._stop(current, None)

    def close(self, error: ServingError) -> None:
        """No step will come any more: end what is on, refuse what comes with `error`."""
        with self._lock:
            self._closed = error
        if self._current is not None:
            self._stop(self._current, error)

    def _do(self, current: Recording, work: Callable[[], None]) -> None:
        if self._current is not current:
            return  # it failed a moment ago
        error = self._attempt(work)
        if error is not None:
            self._fail(current, error)

    def _stop(self, current: Recording, reason: ServingError | None) -> None:
        error = self._attempt(current.recorder.stop) if current.is_started else None
        if error is not None:
            self._fail(current, error)
        elif self._let_go(current):
            if reason is not None and current.taken == 0:
                current.outcome.set_exception(reason)
            else:
                current.outcome.set_result(current.taken)

    def _fail(self, current: Recording, error: BaseException) -> None:
        log.error("recording steps failed", exc_info=error)
        failure = ServingError("the profiler failed; the server's log says why")
        failure.__cause__ = error
        if self._let_go(current):
            current.outcome.set_exception(failure)

    def _let_go(self, current: Recording) -> bool:
        with self._lock:
            is_on = self._current is current
            self._current = None
        return is_on
