"""Time and memory that work takes on a device. Host seconds are taken with the device idle before
and after the work; device milliseconds lie between events in the device's own queue. On the CPU
both are the host's clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from benchmarks.common.stats import Spread

T = TypeVar("T")

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Clock:
    device: torch.device

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def settle(self) -> None:
        """Wait until the device is idle."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], T]) -> tuple[float, T]:
        """Host seconds of one call, and what it returned."""
        self.settle()
        started = time.perf_counter()
        result = work()
        self.settle()
        return time.perf_counter() - started, result

    def host_ms(self, work: Callable[[], object], repeats: int) -> Spread:
        """Host milliseconds per call, each from an idle device to an idle device."""
        return Spread.of([1e3 * self.seconds(work)[0] for _ in range(repeats)])

    def device_ms(self, work: Callable[[], object], repeats: int, warm: int = 1) -> Spread:
        """Device milliseconds per call, calls queued back to back."""
        for _ in range(warm):
            work()
        self.settle()
        marks = Marks(self)
        marks.set()
        for _ in range(repeats):
            work()
            marks.set()
        return Spread.of(marks.gaps_ms())

    def held_bytes(self) -> int:
        """Device memory held by tensors and captured graphs; 0 on the CPU."""
        if not self.is_cuda:
            return 0
        return torch.cuda.memory_allocated(self.device) + _free_in_graph_pools()

    def reset_peak(self) -> int:
        """Forget the peak use of memory; returns the bytes in use now."""
        if not self.is_cuda:
            return 0
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)

    def peak_bytes(self) -> int | None:
        """Most memory held by tensors since `reset_peak`; None on the CPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.is_cuda else None


@contextmanager
def no_synchronising(clock: Clock) -> Iterator[None]:
    """Inside, a call that makes the host wait for the whole device raises `RuntimeError`. Waiting
    for one event, such as a finished picture's copy, does not. No effect on the CPU."""
    if not clock.is_cuda:
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _free_in_graph_pools() -> int:
    """Bytes of captured graphs' intermediate results: the allocator counts them as free."""
    segments = torch.cuda.memory_snapshot()
    private = [each for each in segments if tuple(each.get("segment_pool_id", (0, 0))) != (0, 0)]
    return sum(each["total_size"] - each["allocated_size"] for each in private)


class Marks:
    """Moments in the device's queue, set without waiting for it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._moments: list[Any] = []

    def set(self) -> None:
        """Mark the moment at which everything launched so far has run."""
        if self._clock.is_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._moments.append(event)
        else:
            self._moments.append(time.perf_counter())

    def gaps_ms(self) -> list[float]:
        """Milliseconds between neighbouring marks. Waits for the last one."""
        self._clock.settle()
        pairs = zip(self._moments, self._moments[1:], strict=False)
        if self._clock.is_cuda:
            return [before.elapsed_time(after) for before, after in pairs]
        return [1e3 * (after - before) for before, after in pairs]
