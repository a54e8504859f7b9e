"""Functions that other threads have run on the engine thread, between two steps."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar, runtime_checkable

from predictors.errors import ServingError

T = TypeVar("T")


class EngineAccess(Protocol):
    """The host of an engine, as the engine sees it."""

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` on the engine thread between two steps, and return or raise what it does.
        Any thread but that one; blocks until the engine is warm. Raises `ServingError` if there are
        no more steps."""

    def wait_until_unused(self, is_used: Callable[[Any], bool]) -> None:
        """Block until `is_used(work)` is false for every job that waits or holds a slot. It is
        called with a lock held, so it must be quick. Any thread but the engine's."""


@runtime_checkable
class Attachable(Protocol):
    """Optional part of an engine: it takes orders from other threads through its host."""

    def attach(self, host: EngineAccess) -> None:
        """Called once, before `load`."""


class PendingCall:
    """A function that waits for the engine thread, and its outcome."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.outcome: Future[Any] = Future()

    def end(self, value: Any, error: BaseException | None) -> None:
        if error is None:
            self.outcome.set_result(value)
        else:
            self.outcome.set_exception(error)


class EngineCalls:
    """The calls of one engine loop, in the order in which they came."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self.waiting: deque[PendingCall] = deque()
        """Empty most of the time. Any thread may look."""
        self._closed: ServingError | None = None

    def run(self, function: Callable[[], T]) -> T:
        """As `EngineAccess.call`."""
        call = PendingCall(function)
        with self._lock:
            if self._closed is not None:
                raise self._closed
            self.waiting.append(call)
        self._wake()
        value: T = call.outcome.result()
        return value

    def close(self, error: ServingError) -> None:
        """End waiting and later calls with `error`: there are no more steps. Engine thread."""
        with self._lock:
            self._closed = error
        while self.waiting:
            self.waiting.popleft().end(None, error)
