"""One model's start as its engine thread lives it: what had to be compiled, what came from disk,
and the bundle that makes the next start a warm one. Knows no model.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from predictors import metrics
from predictors.compute.compile.compile_cache import Bundle

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Tally:
    """What one thread asked of compilers."""

    compiled: int = 0
    """Triton kernels and Inductor's graphs (or any other backend's) made anew."""
    cached: int = 0
    """The same, but found on disk."""
    seconds: float = 0.0
    """Inside Dynamo and Triton, for both."""

    def __sub__(self, other: Tally) -> Tally:
        return Tally(
            self.compiled - other.compiled, self.cached - other.cached, self.seconds - other.seconds
        )

    @property
    def start(self) -> str:
        """`cold`: something was compiled; `warm`: all was on disk; `plain`: there was nothing."""
        if self.compiled:
            return "cold"
        return "warm" if self.cached else "plain"


class Start:
    """From the first kernel of a model's load to the end of its warm-up, on the engine thread.

    Two rooms in one process start on two threads, and each counts its own only.
    """

    _tallies: ClassVar[dict[int, Tally]] = {}  # by thread ident
    _lock: ClassVar[threading.Lock] = threading.Lock()
    _is_told_of_kernels: ClassVar[bool] = False
    # Dynamo compiles one graph at a time: who does, since when, and Inductor's counts before
    _graph: ClassVar[tuple[int, float, Counter[str]] | None] = None

    def __init__(self, model: str, bundle: Bundle, has_kernels: bool) -> None:
        """`has_kernels`: whether the model launches Triton kernels, which imports Triton."""
        self._model = model
        self._bundle = bundle
        self._has_kernels = has_kernels
        self._before: Tally | None = None
        self.kind: str | None = None
        """`cold`, `warm` or `plain` once the start has ended. Any thread."""

    def begin(self) -> None:
        """Begin to count, and give torch the bundle. Only the first call until `end` matters."""
        if self._before is not None:
            return
        if self._has_kernels:
            import triton  # noqa: F401  # a hook needs what it hooks into
        self.listen()
        self._bundle.load()
        self._before = self._mine() - Tally()

    def end(self) -> Tally:
        """Show what the start was, and write the bundle if there is anything new. Raises
        `RuntimeError` without `begin`."""
        if self._before is None:
            raise RuntimeError("a start that did not begin can't end")
        found, self._before = self._mine() - self._before, None
        if found.compiled or not self._bundle.exists:
            self._bundle.save()
        self.kind = found.start
        for kind in metrics.STARTS:
            metrics.start_info.labels(self._model, kind).set(kind == found.start)
        metrics.start_compilations.labels(self._model, "compiled").set(found.compiled)
        metrics.start_compilations.labels(self._model, "cached").set(found.cached)
        metrics.model_phase_seconds.labels(self._model, "compile").set(found.seconds)
        log.info(
            "%s: a %s start: %d compiled, %d from disk, in %.2f s",
            self._model, found.start, found.compiled, found.cached, found.seconds,
        )  # fmt: skip
        return found

    @classmethod
    def listen(cls) -> None:
        """Be told of compilations from now on, by those of Dynamo and Triton that are imported.
        Idempotent."""
        with cls._lock:
            if "torch._dynamo" in sys.modules:
                handler = sys.modules["torch._dynamo.callback"].callback_handler
                if cls._on_graph not in handler.start_callbacks:  # `torch._dynamo.reset` forgets
                    handler.register_start_callback(cls._on_graph)
                    handler.register_end_callback(cls._on_graph_done)
            if not cls._is_told_of_kernels and "triton.knobs" in sys.modules:
                compilation = sys.modules["triton.knobs"].compilation
                compilation.listener = cls._before_kernel(compilation.listener)
                cls._is_told_of_kernels = True

    @classmethod
    def _mine(cls) -> Tally:
        return cls._tallies.setdefault(threading.get_ident(), Tally())

    @classmethod
    def _before_kernel(cls, other: Callable[..., None] | None) -> Callable[..., None]:
        """A listener for Triton, which keeps one only, that tells the `other` one as well."""

        def on_kernel(**kernel: Any) -> None:
            if cls._graph is None or cls._graph[0] != threading.get_ident():  # else the graph's own
                tally = cls._mine()
                tally.cached += bool(kernel["cache_hit"])
                tally.compiled += not kernel["cache_hit"]
                tally.seconds += kernel["times"].total / 1e6
            if other is not None:
                other(**kernel)

        return on_kernel

    @classmethod
    def _on_graph(cls, args: object) -> None:
        cls._graph = (threading.get_ident(), time.perf_counter(), _inductor_counts())

    @classmethod
    def _on_graph_done(cls, args: object) -> None:
        if cls._graph is None:
            return
        (_, started, before), cls._graph = cls._graph, None
        found = _inductor_counts() - before
        tally = cls._mine()
        tally.cached += found["fxgraph_cache_hit"]
        # other backends count nothing, and keep nothing either
        tally.compiled += found["fxgraph_cache_miss"] or not found["fxgraph_cache_hit"]
        tally.seconds += time.perf_counter() - started


def _inductor_counts() -> Counter[str]:
    counters = sys.modules["torch._dynamo.utils"].counters
    return Counter(counters["inductor"])
