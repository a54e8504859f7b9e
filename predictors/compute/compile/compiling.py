"""torch.compile with static shapes and whole graphs, and counts of what Dynamo and Triton compile.

A compiled unit is a named function that a runner creates once. Warm-up calls it with every shape
that it will be called with. Both libraries compile on the thread that called the function or
launched the kernel, so compilations are counted by thread.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, ParamSpec, TypeVar

import torch

from predictors import metrics
from predictors.compute.device.placement import Placement

P = ParamSpec("P")
R = TypeVar("R")

# dynamo's default of 8 per function is fewer than sizes x widths; beyond a limit it raises
MAX_SHAPES = 1024
_IMPORTING = threading.Lock()


@dataclass(slots=True)
class CompileCounts:
    """Compilations that one thread has asked for."""

    requested: int = 0
    """Dynamo's graphs and our own Triton kernels, compiled or read from disk."""
    compiled: int = 0
    """Triton kernels and graphs of Inductor (or of another backend) that were compiled."""
    cached: int = 0
    """Triton kernels and Inductor's graphs that were read from disk."""
    seconds: float = 0.0
    """Time inside Dynamo and Triton, for both."""

    def __sub__(self, other: CompileCounts) -> CompileCounts:
        names = [each.name for each in fields(self)]
        return CompileCounts(*(getattr(self, name) - getattr(other, name) for name in names))

    def __add__(self, other: CompileCounts) -> CompileCounts:
        names = [each.name for each in fields(self)]
        return CompileCounts(*(getattr(self, name) + getattr(other, name) for name in names))

    @property
    def kind(self) -> str:
        """`cold`: something was compiled; `warm`: all was on disk; `plain`: nothing was needed."""
        if self.compiled:
            return "cold"
        return "warm" if self.cached else "plain"


class CompileListener:
    """Hooks into Dynamo and Triton, once per process. Any thread."""

    def __init__(self) -> None:
        self._counts: dict[int, CompileCounts] = {}  # by thread ident
        self._lock = threading.Lock()
        self._has_triton = False
        # Dynamo compiles one graph at a time: its thread, its start, Inductor's counters before
        self._graph: tuple[int, float, Counter[str]] | None = None

    def listen(self) -> None:
        """Hook into those of Dynamo and Triton that are imported by now; not into one whose import
        is under way on another thread. Idempotent."""
        with self._lock:
            handler = _imported("torch._dynamo.callback", "callback_handler")
            # checked on every call: `torch._dynamo.reset` removes callbacks
            if handler is not None and self._on_graph_start not in handler.start_callbacks:
                handler.register_start_callback(self._on_graph_start)
                handler.register_end_callback(self._on_graph_end)
            runtime = None if self._has_triton else _imported("triton.knobs", "runtime")
            if runtime is not None:
                compilation = sys.modules["triton.knobs"].compilation  # made before `runtime`
                runtime.jit_post_compile_hook = self._kernel_hook(runtime.jit_post_compile_hook)
                compilation.listener = self._compilation_hook(compilation.listener)
                self._has_triton = True

    def counts(self) -> CompileCounts:
        """A copy of the counts of the calling thread."""
        return replace(self._counts_of(threading.get_ident()))

    def requested(self, thread: int) -> int:
        """`requested` of a thread, without a copy: this is read after every step."""
        return self._counts_of(thread).requested

    def _counts_of(self, thread: int) -> CompileCounts:
        counts = self._counts.get(thread)
        return self._counts.setdefault(thread, CompileCounts()) if counts is None else counts

    def _kernel_hook(self, other: Callable[..., object] | None) -> Callable[..., object]:
        """A hook for Triton's JIT, which keeps only one, that also calls the `other` one."""

        def on_kernel(**kernel: object) -> object:
            self._counts_of(threading.get_ident()).requested += 1
            return None if other is None else other(**kernel)

        return on_kernel

    def _compilation_hook(self, other: Callable[..., None] | None) -> Callable[..., None]:
        """A listener for Triton's compiler, which keeps only one, that also calls the `other`."""

        def on_compilation(**kernel: Any) -> None:
            thread = threading.get_ident()
            if self._graph is None or self._graph[0] != thread:  # else a part of the graph
                counts = self._counts_of(thread)
                counts.cached += bool(kernel["cache_hit"])
                counts.compiled += not kernel["cache_hit"]
                counts.seconds += kernel["times"].total / 1e6
            if other is not None:
                other(**kernel)

        return on_compilation

    def _on_graph_start(self, args: object) -> None:
        thread = threading.get_ident()
        self._counts_of(thread).requested += 1
        self._graph = (thread, time.perf_counter(), _inductor_counters())

    def _on_graph_end(self, args: object) -> None:
        if self._graph is None:
            return
        (thread, started, before), self._graph = self._graph, None
        found = _inductor_counters() - before
        counts = self._counts_of(thread)
        counts.cached += found["fxgraph_cache_hit"]
        # other backends have no counters, and no cache either
        counts.compiled += found["fxgraph_cache_miss"] or not found["fxgraph_cache_hit"]
        counts.seconds += time.perf_counter() - started


def _imported(module: str, name: str) -> Any:
    """A module's object, None where it is not there yet."""
    return getattr(sys.modules.get(module), name, None)


LISTENER = CompileListener()


def _inductor_counters() -> Counter[str]:
    return Counter(sys.modules["torch._dynamo.utils"].counters["inductor"])


def compiled(fn: Callable[P, R], placement: Placement, name: str) -> Callable[P, R]:
    """`fn` compiled with one graph per shape, or `fn` itself if compiling is off.

    A graph break raises; there are no dynamic shapes. `name` appears in profiles and logs.
    """
    if placement.compile == "off":
        return fn
    _prepare_dynamo()
    unit = torch.compile(fn, backend=placement.compile, fullgraph=True, dynamic=False)
    unit.__name__ = name
    return unit


def import_dynamo() -> None:
    """Import Dynamo and Inductor, which takes three seconds: not done by a process that does not
    compile. Any thread; threads that began at different modules of theirs could see unfinished
    ones."""
    with _IMPORTING:
        import torch._dynamo  # noqa: F401


def _prepare_dynamo() -> None:
    import_dynamo()
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MAX_SHAPES)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 16 * MAX_SHAPES)
    LISTENER.listen()


class RecompileGuard:
    """Counts Dynamo's graphs and our own Triton kernels that one engine thread asks for after the
    engine is ready. A kernel that is read from disk counts too, since it delays a request as well.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._seen = 0
        self._is_planned = False
        self.count = 0

    def seal(self) -> None:
        """Count compilations of the calling thread from now on. Engine thread."""
        LISTENER.listen()
        self._thread = threading.get_ident()
        self._seen = LISTENER.requested(self._thread)

    def check(self) -> int:
        """Add new compilations to the metric; returns the number since `seal`. Any thread."""
        if self._thread is None:
            return 0
        LISTENER.listen()
        with self._lock:
            if self._is_planned:
                return self.count
            now = LISTENER.requested(self._thread)
            new, self._seen = now - self._seen, now
            self.count += new
        if new:
            metrics.recompilations_total.labels(self._model).inc(new)
        return self.count

    @contextmanager
    def planned(self) -> Iterator[None]:
        """The block's compilations are planned, and not counted. After `seal`; its thread."""
        self.check()
        self._is_planned = True
        try:
            yield
        finally:
            assert self._thread is not None
            with self._lock:
                self._seen = LISTENER.requested(self._thread)
                self._is_planned = False
