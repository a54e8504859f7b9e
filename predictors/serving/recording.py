"""Records some steps of live traffic with a `Recorder`, such as a profiler.

The recorder is started just before the next step, so a recording that waits for traffic costs
nothing. It is stopped after the last step, or when `Recording.end` is called. Both happen between
steps, on the engine thread.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from predictors.errors import Overloaded, ServingError

log = logging.getLogger(__name__)


class Recorder(Protocol):
    """Records the work of the thread that calls it. Engine thread only."""

    def start(self) -> None: ...

    def before_step(self) -> None: ...

    def after_step(self) -> None: ...

    def stop(self) -> None:
        """Stop to record. Must be quick: a report is made on another thread."""


class Recording:
    """A request to record `steps` steps, and its outcome."""

    def __init__(self, recorder: Recorder, steps: int, wake: Callable[[], None]) -> None:
        self.recorder = recorder
        self.steps = steps
        self.outcome: Future[int] = Future()
        """Number of recorded steps, set once the recorder has stopped, or the error."""
        self.outcome.set_running_or_notify_cancel()  # from here on it can't be cancelled
        self.is_ending = False
        self.is_started = False
        self.taken = 0
        self._wake = wake

    def end(self) -> None:
        """Record no more steps; sets `outcome` after the present one. Any thread."""
        self.is_ending = True
        self._wake()


class Recordings:
    """The recordings of one engine loop, at most one at a time.

    An error of a recorder ends its recording and nothing else.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: Recording | None = None
        self._closed: ServingError | None = None

    def add(self, recording: Recording) -> None:
        """Record from the next step on. Any thread. Raises `Overloaded` while another recording
        is on, and the error that `close` was called with."""
        with self._lock:
            if self._closed is not None:
                raise self._closed
            if self._current is not None:
                raise Overloaded("this engine is being recorded already; try again later")
            self._current = recording

    # -- the engine thread -----------------------------------------------------------------------
    def before_step(self) -> None:
        self.stop_ended()
        current = self._current
        if current is None:
            return
        if not current.is_started:
            current.is_started = True
            self._call(current, current.recorder.start)
        self._call(current, current.recorder.before_step)

    def after_step(self) -> None:
        current = self._current
        if current is None or not current.is_started:
            return
        self._call(current, current.recorder.after_step)
        current.taken += 1
        if current.taken == current.steps:
            current.is_ending = True
        self.stop_ended()

    def stop_ended(self) -> None:
        current = self._current
        if current is not None and current.is_ending:
            self._stop(current, None)

    def close(self, error: ServingError) -> None:
        """End the present recording and refuse later ones with `error`: there are no more steps."""
        with self._lock:
            self._closed = error
        if self._current is not None:
            self._stop(self._current, error)

    def _stop(self, current: Recording, reason: ServingError | None) -> None:
        if current.is_started:
            self._call(current, current.recorder.stop)
        if self._clear(current):
            if reason is not None and current.taken == 0:
                current.outcome.set_exception(reason)
            else:
                current.outcome.set_result(current.taken)

    def _call(self, current: Recording, work: Callable[[], None]) -> None:
        """Call the recorder, unless the recording failed before."""
        if self._current is not current:
            return
        try:
            work()
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)
            log.error("recording steps failed", exc_info=error)
            failure = ServingError("the profiler failed; the server's log says why")
            failure.__cause__ = error
            if self._clear(current):
                current.outcome.set_exception(failure)

    def _clear(self, current: Recording) -> bool:
        """Make room for the next recording; False if `current` was cleared before."""
        with self._lock:
            is_current = self._current is current
            self._current = None
        return is_current
