"""torch.compile with static shapes and whole graphs, and a guard that counts compilations after the
model is ready.

A compiled unit is a named function that a runner creates once. Warm-up calls it with every shape
that it will be called with.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from predictors import metrics
from predictors.compute.compile.listener import LISTENER
from predictors.compute.device.placement import Placement

P = ParamSpec("P")
R = TypeVar("R")

# dynamo's default of 8 per function is fewer than sizes x widths; beyond a limit it raises
MAX_SHAPES = 1024


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


def _prepare_dynamo() -> None:
    import torch._dynamo  # takes three seconds: not imported by a process that does not compile

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
            now = LISTENER.requested(self._thread)
            new, self._seen = now - self._seen, now
            self.count += new
        if new:
            metrics.recompilations_total.labels(self._model).inc(new)
        return self.count
