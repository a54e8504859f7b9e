"""The states of an engine's life, the legal transitions, and the callbacks of a host.

NEW ──> LOADING ──> WARMING ──> READY ──> DRAINING ──> STOPPED
          │            │          │          │
          └────────────┴────┬─────┴──────────┘
                            └──> FAILED        (LOADING and WARMING may also go to DRAINING,
                                                everything but FAILED to STOPPED)
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from predictors.errors import EngineFailed
from predictors.serving.job import Job


class State(Enum):
    """State of an engine. `FAILED` and `STOPPED` are final."""

    NEW = "new"
    LOADING = "loading"
    WARMING = "warming up"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"
    STOPPED = "stopped"


_NEXT = {
    State.NEW: {State.LOADING, State.STOPPED},
    State.LOADING: {State.WARMING, State.DRAINING, State.FAILED, State.STOPPED},
    State.WARMING: {State.READY, State.DRAINING, State.FAILED, State.STOPPED},
    State.READY: {State.DRAINING, State.FAILED, State.STOPPED},
    State.DRAINING: {State.FAILED, State.STOPPED},
    State.FAILED: set[State](),
    State.STOPPED: set[State](),
}


@dataclass(frozen=True, slots=True)
class StartProgress:
    """Progress of a start: in `phase` ("load", "warmup"), `done` of `total` shapes.

    `shape` was warmed last. While loading both numbers are 0. The phase of shapes that are warmed
    after ready is "planned".
    """

    phase: str = ""
    shape: str = ""
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class HostEvents:
    """Callbacks of one host, called in the order in which they were subscribed."""

    on_state: list[Callable[[State], object]] = field(default_factory=list)
    on_progress: list[Callable[[StartProgress], object]] = field(default_factory=list)
    on_warm: list[Callable[[], object]] = field(default_factory=list)
    on_failed: list[Callable[[EngineFailed], object]] = field(default_factory=list)
    on_ended: list[Callable[[Job[Any, Any]], object]] = field(default_factory=list)

    def subscribe(
        self,
        *,
        on_state: Callable[[State], object] | None = None,
        on_progress: Callable[[StartProgress], object] | None = None,
        on_warm: Callable[[], object] | None = None,
        on_failed: Callable[[EngineFailed], object] | None = None,
        on_ended: Callable[[Job[Any, Any]], object] | None = None,
    ) -> None:
        """Add callbacks. Call it before the host starts.

        `on_state(state)`: after each change, on the thread that made it. It must not raise.
        `on_progress(progress)`: engine thread, at the start of each phase and after each warmed
        shape. What it raises is logged.
        `on_warm()`: engine thread, before the first request is served, and again once shapes that
        were left for later are warm. What it raises fails the host.
        `on_failed(error)`: engine thread, once, after all jobs were answered. The process should
        end. What it raises is logged.
        `on_ended(job)`: engine thread, for each job that held a slot, after its last charge and
        before it is removed. It must not raise.
        """
        if on_state is not None:
            self.on_state.append(on_state)
        if on_progress is not None:
            self.on_progress.append(on_progress)
        if on_warm is not None:
            self.on_warm.append(on_warm)
        if on_failed is not None:
            self.on_failed.append(on_failed)
        if on_ended is not None:
            self.on_ended.append(on_ended)


class Lifecycle:
    """The present `state`. Any thread may read it, `move` it or wait for a change.

    `on_change` is called with the new state after each change, on the thread that made it.
    """

    def __init__(self, on_change: Callable[[State], None] = lambda state: None) -> None:
        self.state = State.NEW
        self._changed = threading.Condition()
        self._on_change = on_change

    def move(self, to: State) -> bool:
        """Change to `to`, or return False when the present state does not lead there.

        False is no error: of two threads that change the state at once (one becomes ready while
        another begins to drain) the first one wins.
        """
        with self._changed:
            if to not in _NEXT[self.state]:
                return False
            self.state = to
            self._changed.notify_all()
        self._on_change(to)
        return True

    def wait_for(self, *states: State, timeout_s: float | None = None) -> State | None:
        """Block until the state is one of `states` and return it; None after `timeout_s`."""
        with self._changed:
            reached = self._changed.wait_for(lambda: self.state in states, timeout_s)
            return self.state if reached else None
