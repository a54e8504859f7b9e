"""The compilations of a model's start, counted on its engine thread, and the bundle that saves them
for the next start.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from predictors import metrics
from predictors.compute.compile.compile_cache import Bundle, seal_kept
from predictors.compute.compile.compiling import LISTENER, CompileCounts, import_dynamo

log = logging.getLogger(__name__)


class Start:
    """From the first kernel of a model's load to the end of its warm-up, and what was planned to
    follow it. Engine thread."""

    def __init__(self, model: str, bundle: Bundle, has_kernels: bool) -> None:
        """`has_kernels` is true if the model launches Triton kernels, which imports Triton."""
        self._model = model
        self._bundle = bundle
        self._has_kernels = has_kernels
        self._before: CompileCounts | None = None
        self._found = CompileCounts()
        self.kind: str | None = None
        """`cold`, `warm` or `plain` once the start has ended. Any thread."""

    def begin(self) -> None:
        """Begin to count, and give torch the bundle. Further calls before `end` do nothing."""
        if self._before is not None:
            return
        if self._has_kernels:
            import triton  # noqa: F401  # must be imported before it can be hooked
        if self._bundle.exists:
            import_dynamo()  # reading it imports parts
        LISTENER.listen()
        self._bundle.load()
        self._before = LISTENER.counts()

    def end(self) -> CompileCounts:
        """Write metrics, and the bundle if there is news. Raises `RuntimeError` without `begin`."""
        if self._before is None:
            raise RuntimeError("a start that did not begin can't end")
        self._found, self._before = LISTENER.counts() - self._before, None
        return self._write()

    @contextmanager
    def planned(self) -> Iterator[None]:
        """The block's compilations belong to the start too, see `end_planned`. After `end`."""
        before = LISTENER.counts()
        try:
            yield
        finally:
            self._found += LISTENER.counts() - before

    def end_planned(self) -> None:
        """As `end`, with the compilations of all that was `planned`."""
        self._write()

    def _write(self) -> CompileCounts:
        found = self._found
        if found.compiled or not self._bundle.exists:
            self._bundle.save()
        seal_kept()
        self.kind = found.kind
        for kind in metrics.STARTS:
            metrics.start_info.labels(self._model, kind).set(kind == found.kind)
        metrics.start_compilations.labels(self._model, "compiled").set(found.compiled)
        metrics.start_compilations.labels(self._model, "cached").set(found.cached)
        metrics.model_phase_seconds.labels(self._model, "compile").set(found.seconds)
        log.info(
            "%s: a %s start: %d compiled, %d from disk, in %.2f s",
            self._model, found.kind, found.compiled, found.cached, found.seconds,
        )  # fmt: skip
        return found
