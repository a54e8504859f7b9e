"""CUDA graphs: captured during warm-up, replayed from then on, and counted if captured later.

A replay is one launch for a whole forward pass. Without CUDA, or with `compute.compile` off, the
function itself is called instead of a graph, so that callers have one path and captures are counted
on the CPU too.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from predictors import metrics
from predictors.compute.device.placement import Placement

log = logging.getLogger(__name__)

NUM_REHEARSALS = (
    2  # runs before a capture, so that kernels are compiled and libraries have their handles
)

R = TypeVar("R")  # a tensor, or a tuple of them

# a capture begins by waiting for the device, which would break another engine's capture
_capturing = threading.Lock()


class Captured(Generic[R]):
    """A function of tensors with fixed shapes, as a CUDA graph if there are graphs."""

    def __init__(
        self,
        function: Callable[..., R] | None,
        inputs: tuple[Tensor, ...],
        graph: torch.cuda.CUDAGraph | None = None,
        output: R | None = None,
    ) -> None:
        self._function = function
        self.inputs = inputs
        """The graph's own memory. A caller that fills it and passes it saves a copy."""
        self._graph = graph
        self._output = output

    def __call__(self, *inputs: Tensor) -> R:
        """The result for `inputs` of the captured shapes and dtypes, on the current stream.

        The host does not wait. The result lies in the pool's memory and is valid until any graph of
        the same `Graphs` is replayed; read it on the same stream before that. Raises `ValueError`
        for another shape, because a copy would broadcast it.
        """
        if self._graph is None:
            if self._function is None:
                raise RuntimeError("the graphs were closed")
            return self._function(*inputs)
        for ours, theirs in zip(self.inputs, inputs, strict=True):
            if theirs is ours:
                continue
            if theirs.shape != ours.shape or theirs.dtype != ours.dtype:
                raise ValueError(
                    f"captured for {list(ours.shape)} {ours.dtype}, "
                    f"called with {list(theirs.shape)} {theirs.dtype}"
                )
            ours.copy_(theirs, non_blocking=True)
        self._graph.replay()
        assert self._output is not None
        return self._output

    def release(self) -> None:
        """Free the memory. The graph can't be called afterwards. Idempotent."""
        graph, self._graph, self._output, self._function = self._graph, None, None, None
        self.inputs = ()
        if graph is not None:
            graph.reset()


class Graphs:
    """The captures of one engine. Engine thread.

    They share a memory pool, so that the memory of the largest serves all (capture it first), and
    one stream."""

    def __init__(self, model: str, placement: Placement) -> None:
        self._model = model
        self._stream: torch.cuda.Stream | None = None
        if placement.is_cuda and placement.compile != "off":
            self._stream = torch.cuda.Stream(placement.device)
            self._pool = torch.cuda.graph_pool_handle()
        self._held: weakref.WeakSet[Captured[object]] = weakref.WeakSet()
        self._is_sealed = False
        self.count = 0
        """Captures so far, including those without CUDA."""
        self.count_after_ready = 0
        """Captures after `seal`."""
        self.seconds = 0.0
        """Time spent on captures, including the runs before each."""

    def capture(
        self, function: Callable[..., R], inputs: tuple[Tensor, ...], name: str = "pass"
    ) -> Captured[R]:
        """Capture `function` for inputs of these shapes and dtypes. Waits for the device.

        `inputs` are only examples. `function` must neither read values back nor keep its results.
        Everything else that it uses (weights, tables) must keep its address while the capture is in
        use. A graph is freed once the returned object is no longer referenced.
        """
        started = time.perf_counter()
        if self._stream is None:
            captured = Captured(function, inputs)
        else:
            try:
                captured = _record(function, inputs, self._stream, self._pool)
            except BaseException:
                # after a failed capture torch keeps recording to the pool: it would refuse the next
                # capture and free no graph's memory
                with suppress(RuntimeError):  # the capture failed before it was recording
                    torch._C._cuda_endAllocateToPool(self._stream.device.index, self._pool)
                self._pool = torch.cuda.graph_pool_handle()
                raise
        self._held.add(captured)  # type: ignore[arg-type]
        self.count += 1
        seconds = time.perf_counter() - started
        self.seconds += seconds
        log.debug("%s: captured %s in %.3f s", self._model, name, seconds)
        if self._is_sealed:
            self.count_after_ready += 1
            metrics.graph_captures_total.labels(self._model).inc()
        return captured

    def seal(self) -> None:
        """Count later captures as captures after ready, and write the time spent so far."""
        self._is_sealed = True
        metrics.model_phase_seconds.labels(self._model, "capture").set(self.seconds)

    def close(self) -> None:
        """Free every graph that is still referenced. Idempotent."""
        for captured in list(self._held):
            captured.release()


def _record(
    function: Callable[..., R],
    examples: tuple[Tensor, ...],
    stream: torch.cuda.Stream,
    pool: Any,
) -> Captured[R]:
    caller = torch.cuda.current_stream(stream.device)
    with torch.inference_mode(False):  # may be written in either mode
        inputs = tuple(example.detach().clone() for example in examples)
    stream.wait_stream(caller)
    graph = torch.cuda.CUDAGraph()
    # the outer stream context restores the caller's stream even if the capture fails
    with torch.cuda.stream(stream), torch.inference_mode():
        for _ in range(NUM_REHEARSALS):
            function(*inputs)
        # thread_local: another engine's thread may allocate meanwhile
        with (
            _capturing,
            torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
        ):
            output = function(*inputs)
    caller.wait_stream(stream)
    return Captured(None, inputs, graph, output)
