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
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
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

Turn = Callable[[], AbstractContextManager[None]]
"""Makes the context in which one piece of a pass is launched; each launch has its own."""

# a capture begins by waiting for the device, which would break another engine's capture
_capturing = threading.Lock()


class Captured(Generic[R]):
    """A function of tensors with fixed shapes, as CUDA graphs if there are graphs: one, or one for
    each of its pieces."""

    def __init__(
        self,
        pieces: Sequence[Callable[..., Any]],
        inputs: tuple[Tensor, ...],
        graphs: Sequence[torch.cuda.CUDAGraph] = (),
        output: R | None = None,
    ) -> None:
        self._pieces = tuple(pieces)
        self.inputs = inputs
        """The graph's own memory. A caller that fills it and passes it saves a copy."""
        self._graphs = tuple(graphs)
        self._output = output

    def __call__(self, *inputs: Tensor, turn: Turn = nullcontext) -> R:
        """The result for `inputs` of the captured shapes and dtypes, on the current stream. Each
        piece is launched inside of a `turn` of its own.

        The host does not wait. The result lies in the pool's memory and is valid until any graph of
        the same `Graphs` is replayed; read it on the same stream before that. Raises `ValueError`
        for another shape, because a copy would broadcast it.
        """
        if not self._graphs:
            if not self._pieces:
                raise RuntimeError("the graphs were closed")
            made: R = run_pieces(self._pieces, inputs, turn)
            return made
        for ours, theirs in zip(self.inputs, inputs, strict=True):
            if theirs is ours:
                continue
            if theirs.shape != ours.shape or theirs.dtype != ours.dtype:
                raise ValueError(
                    f"captured for {list(ours.shape)} {ours.dtype}, "
                    f"called with {list(theirs.shape)} {theirs.dtype}"
                )
            ours.copy_(theirs, non_blocking=True)
        for graph in self._graphs:
            with turn():
                graph.replay()
        assert self._output is not None
        return self._output

    def release(self) -> None:
        """Free the memory. The graph can't be called afterwards. Idempotent."""
        graphs, self._graphs, self._output, self._pieces = self._graphs, (), None, ()
        self.inputs = ()
        for graph in graphs:
            graph.reset()


def run_pieces(
    pieces: Sequence[Callable[..., Any]], inputs: tuple[Tensor, ...], turn: Turn = nullcontext
) -> Any:
    """The result of a pass in pieces: the first takes the inputs, each other one what the piece
    before it returned and then the inputs."""
    first, *others = pieces
    with turn():
        made = first(*inputs)
    for piece in others:
        with turn():
            made = piece(made, *inputs)
    return made


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
        self._device = placement.device
        self._held: weakref.WeakSet[Captured[object]] = weakref.WeakSet()
        self.is_sealed = False
        """Captures are counted as captures after ready."""
        self.count = 0
        """Captures so far, including those without CUDA."""
        self.count_after_ready = 0
        """Captures after `seal` that were not `planned`."""
        self.seconds = 0.0
        """Time spent on captures, including the runs before each."""

    def prioritise(self, priority: int) -> None:
        """Capture on a stream of this priority: a graph's kernels keep that of their capture.
        Before the first capture."""
        if self._stream is not None:
            self._stream = torch.cuda.Stream(self._device, priority=priority)

    def capture(
        self,
        function: Callable[..., R],
        inputs: tuple[Tensor, ...],
        name: str = "pass",
        *,
        in_place: bool = False,
    ) -> Captured[R]:
        """Capture `function` for inputs of these shapes and dtypes. Waits for the device.

        `inputs` are only examples; with `in_place` the graph reads them where they are. `function`
        must neither read values back nor keep its results. Everything else that it uses (weights,
        tables) must keep its address while the capture is in use. A graph is freed once the
        returned object is no longer referenced.
        """
        return self.capture_pieces([function], inputs, name, in_place=in_place)

    def capture_pieces(
        self,
        pieces: Sequence[Callable[..., Any]],
        inputs: tuple[Tensor, ...],
        name: str = "pass",
        *,
        in_place: bool = False,
    ) -> Captured[Any]:
        """As `capture`, for a function in pieces as `run_pieces` has them, with a graph for each.
        All are replayed before any other graph of these."""
        started = time.perf_counter()
        captured: Captured[Any]
        if self._stream is None:
            captured = Captured(pieces, inputs)
        else:
            try:
                own = inputs if in_place else _copies(inputs)
                captured = _record(pieces, own, self._stream, self._pool)
            except BaseException:
                # after a failed capture torch keeps recording to the pool: it would refuse the next
                # capture and free no graph's memory
                with suppress(RuntimeError):  # the capture failed before it was recording
                    torch._C._cuda_endAllocateToPool(self._stream.device.index, self._pool)
                self._pool = torch.cuda.graph_pool_handle()
                raise
        self._held.add(captured)
        self.count += 1
        seconds = time.perf_counter() - started
        self.seconds += seconds
        log.debug("%s: captured %s in %.3f s", self._model, name, seconds)
        if self.is_sealed:
            self.count_after_ready += 1
            metrics.graph_captures_total.labels(self._model).inc()
        return captured

    def seal(self) -> None:
        """Count later captures as captures after ready, and write the time spent so far."""
        self.is_sealed = True
        metrics.model_phase_seconds.labels(self._model, "capture").set(self.seconds)

    @contextmanager
    def planned(self) -> Iterator[None]:
        """The block's captures are planned, and not counted as captures after ready. After
        `seal`."""
        self.is_sealed = False
        try:
            yield
        finally:
            self.seal()

    def close(self) -> None:
        """Free every graph that is still referenced. Idempotent."""
        for captured in list(self._held):
            captured.release()


def _copies(examples: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    with torch.inference_mode(False):  # may be written in either mode
        return tuple(example.detach().clone() for example in examples)


def _record(
    pieces: Sequence[Callable[..., Any]],
    inputs: tuple[Tensor, ...],
    stream: torch.cuda.Stream,
    pool: Any,
) -> Captured[Any]:
    caller = torch.cuda.current_stream(stream.device)
    stream.wait_stream(caller)
    graphs: list[torch.cuda.CUDAGraph] = []
    # the outer stream context restores the caller's stream even if the capture fails
    with torch.cuda.stream(stream), torch.inference_mode():
        for _ in range(NUM_REHEARSALS):
            run_pieces(pieces, inputs)
        made: tuple[Any, ...] = ()
        for piece in pieces:
            graph = torch.cuda.CUDAGraph()
            # thread_local: another engine's thread may allocate meanwhile
            with (
                _capturing,
                torch.cuda.graph(
                    graph, pool=pool, stream=stream, capture_error_mode="thread_local"
                ),
            ):
                # what a piece leaves to the next is held until that is captured, so that no memory
                # of it is given away before it is read
                made = (piece(*made, *inputs),)
            graphs.append(graph)
    caller.wait_stream(stream)
    return Captured((), inputs, graphs, made[0])
