"""torch.compile as this house uses it: static shapes, whole graphs, and a guard that proves
nothing compiles later, neither Dynamo's graphs nor our own Triton kernels.

Compiled units are named functions that a runner creates once; their shapes come from a list that
warm-up walks. Knows no model and no shape.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import ClassVar, ParamSpec, TypeVar

import torch

from predictors import metrics
from predictors.compute.compile.start import Start
from predictors.compute.device.placement import Placement

P = ParamSpec("P")
R = TypeVar("R")

# dynamo's default of 8 per function is fewer than sizes x widths; beyond a limit it raises
MAX_SHAPES = 1024


def compiled(fn: Callable[P, R], placement: Placement, name: str) -> Callable[P, R]:
    """`fn` itself when compiling is off, else its compiled form: one graph per shape, never
    dynamic, never broken.

    A graph break is an error, not a slow path. `name` appears in profiles and logs.
    """
    if placement.compile == "off":
        return fn
    _prepare_dynamo()
    unit = torch.compile(fn, backend=placement.compile, fullgraph=True, dynamic=False)
    unit.__name__ = name
    return unit


def _prepare_dynamo() -> None:
    import torch._dynamo  # three seconds that a process without a compiler does not pay

    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MAX_SHAPES)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 16 * MAX_SHAPES)
    RecompileGuard.listen()
    Start.listen()


class RecompileGuard:
    """Counts what Dynamo and Triton compile on one engine thread after that engine said it was
    ready. A Triton kernel that comes from the disk counts too: it holds up a request as well.

    Two rooms in one process compile on two threads, so each guard counts its own thread only.
    """

    # thread ident -> frames and kernels compiled on it
    _compiled: ClassVar[Counter[int]] = Counter()
    _lock: ClassVar[threading.Lock] = threading.Lock()
    _is_told_of_kernels: ClassVar[bool] = False

    def __init__(self, model: str) -> None:
        self._model = model
        self._thread: int | None = None
        self._seen = 0
        self.count = 0

    def seal(self) -> None:
        """From now on a compilation on the calling thread counts as a recompilation. Engine
        thread."""
        self.listen()
        self._thread = threading.get_ident()
        self._seen = self._compiled[self._thread]

    def check(self) -> int:
        """Add what was compiled since the last look to the metric; returns the sum since `seal`.
        Any thread."""
        if self._thread is None:
            return 0
        self.listen()
        with self._lock:
            now = self._compiled[self._thread]
            new, self._seen = now - self._seen, now
            self.count += new
        if new:
            metrics.recompilations_total.labels(self._model).inc(new)
        return self.count

    @classmethod
    def listen(cls) -> None:
        """Be told of compilations, once there can be any (Dynamo or Triton is imported).
        Idempotent."""
        with cls._lock:
            if "torch._dynamo" in sys.modules:
                handler = torch._dynamo.callback.callback_handler
                # asked each time: `torch._dynamo.reset` forgets callbacks
                if cls._on_compile not in handler.start_callbacks:
                    handler.register_start_callback(cls._on_compile)
            if not cls._is_told_of_kernels and "triton.knobs" in sys.modules:
                runtime = sys.modules["triton.knobs"].runtime
                runtime.jit_post_compile_hook = cls._before(runtime.jit_post_compile_hook)
                cls._is_told_of_kernels = True

    @classmethod
    def _before(cls, other: Callable[..., object] | None) -> Callable[..., object]:
        """A hook for Triton, which keeps one only, that calls the `other` one as well."""

        def on_kernel(**kernel: object) -> object:
            cls._on_compile(kernel)
            return None if other is None else other(**kernel)

        return on_kernel

    @classmethod
    def _on_compile(cls, args: object) -> None:
        # both compile on the thread that called the function or launched the kernel
        cls._compiled[threading.get_ident()] += 1
