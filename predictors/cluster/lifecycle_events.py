"""Kubernetes events and the warm-up annotation for the life of a process and its models: loading,
warming up, ready, draining, failed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from predictors.cluster.events import PodEvent
from predictors.cluster.identity import PodIdentity
from predictors.cluster.reporter import EventReporter
from predictors.errors import ServingError
from predictors.settings import ClusterSettings


class LifecycleEvents:
    """Reports changes of a model's state, if there is a reporter. Any thread; never blocks."""

    def __init__(
        self,
        models: Sequence[str],
        reporter: EventReporter | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reporter = reporter
        self._clock = clock
        self._lock = threading.Lock()
        self._began = dict.fromkeys(models, clock())
        self._progress = dict.fromkeys(models, "waiting")
        self._is_ending = False  # from then on only failures are reported

    def loading(self, model: str) -> None:
        self._began[model] = self._clock()
        self._report("Loading", f"{model} is loading", model)
        self._annotate(model, "loading")

    def warming(self, model: str) -> None:
        message = f"{model} is loaded and warming up, after {self._since(model)}"
        self._report("WarmingUp", message, model, is_deferrable=True)
        self._annotate(model, "warming up")

    def warmed(
        self, model: str, shape: str, done: int, total: int, *, is_ready: bool = False
    ) -> None:
        """`is_ready`: the shape is one of those that follow after ready."""
        message = f"{model} is warm for {shape} ({done} of {total})"
        self._report("WarmingUp", message, model, is_deferrable=True)
        is_last = is_ready and done == total
        self._annotate(model, "ready" if is_last else f"{done}/{total} {shape}")

    def ready(self, model: str) -> None:
        self._report("Ready", f"{model} is ready, after {self._since(model)}", model)
        self._annotate(model, "ready")

    def draining(self, requests: int, seconds: float) -> None:
        """The process is shutting down and has `seconds` for its last requests."""
        self._report("Draining", f"finishing {requests} requests for at most {seconds:g} s")
        self._is_ending = True

    def failed(self, model: str, message: str) -> None:
        self._report("EngineFailed", message, model, is_warning=True)
        self._annotate(model, "failed")

    def _since(self, model: str) -> str:
        return f"{self._clock() - self._began[model]:.1f} s"

    def _report(
        self,
        reason: str,
        message: str,
        model: str = "",
        *,
        is_warning: bool = False,
        is_deferrable: bool = False,
    ) -> None:
        if self._reporter is not None and (is_warning or not self._is_ending):
            self._reporter.report(
                PodEvent(reason, message, model, is_warning=is_warning, is_deferrable=is_deferrable)
            )

    def _annotate(self, model: str, progress: str) -> None:
        if self._reporter is None or (self._is_ending and progress != "failed"):
            return
        with self._lock:  # models start on threads of their own: keep the texts in order
            self._progress[model] = progress
            if set(self._progress.values()) == {"ready"}:
                self._reporter.annotate("ready")
                return
            shown = (f"{name} {text}" for name, text in self._progress.items())
            self._reporter.annotate("; ".join(shown))


@contextmanager
def lifecycle_events(
    models: Sequence[str], identity: PodIdentity | None, settings: ClusterSettings
) -> Iterator[LifecycleEvents]:
    """Events of these models, reported until the block ends; without an identity none are."""
    if identity is None:
        yield LifecycleEvents(models, None)
        return
    reporter = EventReporter(identity, settings)
    reporter.start()
    try:
        yield LifecycleEvents(models, reporter)
    finally:
        reporter.close()


@contextmanager
def refusal_events(
    models: Sequence[str], identity: PodIdentity | None, settings: ClusterSettings
) -> Iterator[None]:
    """Reports a `ServingError` of the block, which ends the start, as the failure of `models`."""
    try:
        yield
    except ServingError as error:
        with lifecycle_events(models, identity, settings) as events:
            for model in models:
                events.failed(model, f"the start was refused: {error.message}")
        raise
