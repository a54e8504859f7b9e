"""What a process tells Kubernetes of its models, in words: loading, warming up, ready, draining,
failed. Knows reasons and sentences; neither engines nor how they get there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from predictors.cluster.account import Account
from predictors.cluster.events import Notice
from predictors.cluster.reporter import Reporter
from predictors.settings import ClusterSettings


class Story:
    """The life of a process and its models. Any thread, never blocks; without a reporter nobody
    hears it."""

    def __init__(
        self,
        models: Sequence[str],
        reporter: Reporter | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reporter = reporter
        self._clock = clock
        self._lock = threading.Lock()
        self._began = dict.fromkeys(models, clock())
        self._progress = dict.fromkeys(models, "waiting")
        self._is_ending = False  # what still gets ready then is nobody's business

    def loading(self, model: str) -> None:
        """`model` has begun to load."""
        self._began[model] = self._clock()
        self._tell("Loading", f"{model} is loading", model)
        self._show(model, "loading")

    def warming(self, model: str) -> None:
        """`model` is loaded and has begun to warm up."""
        message = f"{model} is loaded and warming up, after {self._since(model)}"
        self._tell("WarmingUp", message, model, can_wait=True)
        self._show(model, "warming up")

    def warmed(self, model: str, shape: str, done: int, total: int) -> None:
        """`model` is warm for one more shape."""
        message = f"{model} is warm for {shape} ({done} of {total})"
        self._tell("WarmingUp", message, model, can_wait=True)
        self._show(model, f"{done}/{total} {shape}")

    def ready(self, model: str) -> None:
        """`model` may be asked."""
        self._tell("Ready", f"{model} is ready, after {self._since(model)}", model)
        self._show(model, "ready")

    def draining(self, requests: int, seconds: float) -> None:
        """The process has begun to end, with so many requests to finish in so much time. Only a
        failure is told after that."""
        self._tell("Draining", f"finishing {requests} requests for at most {seconds:g} s")
        self._is_ending = True

    def failed(self, model: str, message: str) -> None:
        """`model` has failed for good."""
        self._tell("EngineFailed", message, model, is_warning=True)
        self._show(model, "failed")

    def _since(self, model: str) -> str:
        return f"{self._clock() - self._began[model]:.1f} s"

    def _tell(
        self,
        reason: str,
        message: str,
        model: str = "",
        *,
        is_warning: bool = False,
        can_wait: bool = False,
    ) -> None:
        if self._reporter is not None and (is_warning or not self._is_ending):
            notice = Notice(reason, message, model, is_warning=is_warning, can_wait=can_wait)
            self._reporter.tell(notice)

    def _show(self, model: str, progress: str) -> None:
        if self._reporter is None or (self._is_ending and progress != "failed"):
            return
        with self._lock:  # two models start on two threads: the later text must be told later
            self._progress[model] = progress
            if set(self._progress.values()) == {"ready"}:
                self._reporter.annotate("ready")
                return
            shown = (f"{name} {text}" for name, text in self._progress.items())
            self._reporter.annotate("; ".join(shown))


@contextmanager
def telling(
    models: Sequence[str], account: Account | None, settings: ClusterSettings
) -> Iterator[Story]:
    """A story that is told for as long as the block lasts, to nobody without an account."""
    if account is None:
        yield Story(models, None)
        return
    reporter = Reporter(account, settings)
    reporter.start()
    try:
        yield Story(models, reporter)
    finally:
        reporter.close()
