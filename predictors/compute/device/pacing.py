"""Keeps the host a bounded way ahead of the device, and says how long each step took there. Knows
no model; engine thread only.

Launching is a thousand times quicker than computing, so a loop that only launches would hand the
device all steps of a picture at once: nobody could leave or join before the last. The wait is for
an event of an earlier step, never for the device, which always has the next step queued.
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


class Done(NamedTuple):
    """A step that is over."""

    tag: str
    seconds: float
    """On the device; on the host where there is none."""


class Pace:
    """Marks around steps, oldest first."""

    def __init__(self, placement: Placement) -> None:
        self._is_cuda = placement.is_cuda
        self._marks: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()
        self._done: list[Done] = []

    @contextmanager
    def step(self, tag: str) -> Iterator[None]:
        """Around the launches of one step; one that raises leaves no mark."""
        if not self._is_cuda:
            started = time.perf_counter()
            yield
            self._done.append(Done(tag, time.perf_counter() - started))
            return
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        self._marks.append((tag, start, end))

    def wait(self, ahead: int = AHEAD) -> list[Done]:
        """Until fewer than `ahead` steps are under way; all that are over since the last call."""
        while self._marks and len(self._marks) >= ahead:
            tag, start, end = self._marks.popleft()
            end.synchronize()
            self._done.append(Done(tag, start.elapsed_time(end) / 1e3))
        done, self._done = self._done, []
        return done
