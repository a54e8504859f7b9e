"""Keeps the host a bounded number of steps ahead of the device, and measures the time of each step
there.

Launching is a thousand times faster than computing. Without a bound the host would launch all steps
of a picture at once, and no job could join or leave before the last. The host waits for an event of
an earlier step, never for the device, which always has the next step queued.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

import torch

from predictors.compute.device.placement import Placement

AHEAD = 2  # one step computes, one is queued

T = TypeVar("T")


class DeviceSpan:
    """The seconds of what a `with` block launches: on the device, or on the host without CUDA."""

    def __init__(self, placement: Placement) -> None:
        self._is_cuda = placement.is_cuda
        self._seconds: float | None = None
        if self._is_cuda:
            self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __enter__(self) -> None:
        if self._is_cuda:
            self._start.record()
        else:
            self._started = time.perf_counter()

    def __exit__(self, *raised: object) -> None:
        if self._is_cuda:
            self._end.record()
        else:
            self._seconds = time.perf_counter() - self._started

    def seconds(self) -> float:
        """Waits until the device has done it. Not before the block has ended."""
        if self._seconds is None:
            self._end.synchronize()
            self._seconds = self._start.elapsed_time(self._end) / 1e3
        return self._seconds


class FinishedStep(NamedTuple, Generic[T]):
    """A step that the device has finished."""

    tag: T
    seconds: float
    """Time on the device, or on the host without CUDA."""


class StepPacer(Generic[T]):
    """Spans of the steps that were launched, with a tag each, oldest first. Engine thread."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._launched: deque[tuple[T, DeviceSpan]] = deque()
        self._done: list[FinishedStep[T]] = []

    @contextmanager
    def step(self, tag: T) -> Iterator[None]:
        """Wraps the launches of one step. A step that raises is not recorded."""
        span = DeviceSpan(self._placement)
        with span:
            yield
        if self._placement.is_cuda:
            self._launched.append((tag, span))
        else:
            self._done.append(FinishedStep(tag, span.seconds()))

    def wait(self, ahead: int = AHEAD) -> list[FinishedStep[T]]:
        """Wait until fewer than `ahead` steps are in flight; returns the steps finished since the
        last call."""
        while self._launched and len(self._launched) >= ahead:
            tag, span = self._launched.popleft()
            self._done.append(FinishedStep(tag, span.seconds()))
        done, self._done = self._done, []
        return done
