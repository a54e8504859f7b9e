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
from typing import NamedTuple

import torch

from predictors.compute.device.placement import Placement

AHEAD = 2  # one step computes, one is queued


class FinishedStep(NamedTuple):
    """A step that the device has finished."""

    tag: str
    seconds: float
    """Time on the device, or on the host without CUDA."""


class StepPacer:
    """Events around the steps that were launched, oldest first. Engine thread."""

    def __init__(self, placement: Placement) -> None:
        self._is_cuda = placement.is_cuda
        self._launched: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()
        self._done: list[FinishedStep] = []

    @contextmanager
    def step(self, tag: str) -> Iterator[None]:
        """Wraps the launches of one step. A step that raises is not recorded."""
        if not self._is_cuda:
            started = time.perf_counter()
            yield
            self._done.append(FinishedStep(tag, time.perf_counter() - started))
            return
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        self._launched.append((tag, start, end))

    def wait(self, ahead: int = AHEAD) -> list[FinishedStep]:
        """Wait until fewer than `ahead` steps are in flight; returns the steps finished since the
        last call."""
        while self._launched and len(self._launched) >= ahead:
            tag, start, end = self._launched.popleft()
            end.synchronize()
            self._done.append(FinishedStep(tag, start.elapsed_time(end) / 1e3))
        done, self._done = self._done, []
        return done
