"""A brake on a live engine: a recorder of its steps that lets some pass and holds the next one. For
tests that must do something while a real picture or answer is in progress."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.http.echo import PATIENCE_S, Running


class Brake:
    """Engine thread: the verbs of `predictors.serving.recording.Recorder`. Test thread:
    `wait_held` and `release`."""

    def __init__(self, free_steps: int) -> None:
        self._free_steps = free_steps
        self._holds = threading.Event()
        self._is_released = threading.Event()

    def start(self) -> None: ...

    def before_step(self) -> None:
        if self._free_steps > 0:
            self._free_steps -= 1
            return
        self._holds.set()
        assert self._is_released.wait(PATIENCE_S), "the test never released the engine"

    def after_step(self) -> None: ...

    def stop(self) -> None: ...

    def wait_held(self) -> None:
        """Return once the engine has admitted what it could and is held before a step."""
        assert self._holds.wait(PATIENCE_S), "there was no step to hold"

    def release(self) -> None:
        self._is_released.set()


def host_of(running: Running, model: str) -> Any:
    served: Any = running.server.registry.models[model]
    return served.host


@contextmanager
def braked(running: Running, model: str, free_steps: int = 0) -> Iterator[Brake]:
    """From now on `model` takes so many steps and no more, until it is released or the block
    ends."""
    brake = Brake(free_steps)
    recording = host_of(running, model).record(brake, sys.maxsize)
    try:
        yield brake
    finally:
        brake.release()
        recording.end()
        recording.outcome.result(PATIENCE_S)


def wait_answered(running: Running) -> None:
    """Return once no request is in flight and each outcome is logged and counted."""
    with running.client() as http:
        while running.server.registry.in_flight:
            http.get("/v2/health/live")
        # the event loop answers this after whatever it does in one go at the end of a request
        http.get("/v2/health/live")
