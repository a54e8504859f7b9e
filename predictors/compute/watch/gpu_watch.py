"""Keeps the gauges of this process's GPU: what torch holds of it, what its driver says, its XID
errors. Knows no model and no request.

Two daemon threads, neither of them an engine's or the event loop's: one reads every few seconds,
one waits for errors. A scrape only reads gauges, so a driver that takes its time makes nobody wait;
one that never answers leaves the last values standing. Nothing is touched before something else
has initialised CUDA, and without a GPU there are no threads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from prometheus_client import Gauge

from predictors import metrics
from predictors.compute.device.placement import chosen_device
from predictors.compute.watch.nvml import (
    Card,
    NvmlSilent,
    Reading,
    XidErrors,
    find_card,
    open_library,
)
from predictors.settings import ComputeSettings

log = logging.getLogger(__name__)

READ_EVERY_S = 5.0
WAIT_S = 0.5  # for an error, at a time: how long the end of the process may be put off
ASK_AGAIN_S = 30.0  # a driver that did not answer
LEAVE_S = 2.0  # for a thread that is inside the driver when the process ends

# what ran on the card was wrong, says NVIDIA's catalogue, and the card is well: engine exception,
# page fault, stopped, clean-up after another error, video exception, context switch timeout
APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 109})


@dataclass(frozen=True, slots=True)
class Held:
    """What torch says of its device. `memory_bytes` has `allocated`, `reserved`, `peak` and
    `total`; `uuid` is CUDA's, without NVML's prefix."""

    uuid: str
    memory_bytes: Mapping[str, int]


def held_on(device: torch.device) -> Held | None:
    """What this process holds of `device`, or None while CUDA is not initialised. Any thread; asks
    the allocator's books, not the device, and waits no longer than one allocation takes."""
    if not torch.cuda.is_initialized():
        return None
    properties = torch.cuda.get_device_properties(device)
    books = torch.cuda.memory_stats_as_nested_dict(device)
    memory_bytes = {
        "allocated": books["allocated_bytes"]["all"]["current"],
        "reserved": books["reserved_bytes"]["all"]["current"],
        "peak": books["allocated_bytes"]["all"]["peak"],
        "total": properties.total_memory,
    }
    return Held(str(properties.uuid), memory_bytes)


class GpuWatch:
    """The gauges of one device. `held` says what torch holds, `library` opens NVML."""

    def __init__(
        self, held: Callable[[], Held | None], library: Callable[[], Any] = open_library
    ) -> None:
        self._held = held
        self._open = library
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        self._name = ""
        self._card: Card | None = None

    def start(self) -> None:
        """Watch from now on; returns at once."""
        self._run(self._keep_looking, "gpu-gauges")

    def stop(self) -> None:
        """End the threads; blocks for `LEAVE_S` at most if the driver holds one."""
        self._ending.set()
        for thread in list(self._threads):
            thread.join(LEAVE_S)

    def look(self) -> None:
        """Bring the gauges up to date. One thread; blocks while the driver answers."""
        held = self._held()
        if held is None:
            return
        if not self._name:
            self._find(held.uuid)
        told = self._card.read() if self._card is not None else Reading({}, None, None, None, None)
        memory_bytes = {**held.memory_bytes, **told.memory_bytes}
        for state in metrics.GPU_MEMORY:
            _show(metrics.gpu_memory_bytes, memory_bytes.get(state), self._name, state)
        _show(metrics.gpu_utilization_ratio, told.utilization, self._name)
        _show(metrics.gpu_temperature_celsius, told.temperature_celsius, self._name)
        _show(metrics.gpu_power_watts, told.power_watts, self._name)
        _show(metrics.gpu_power_limit_watts, told.power_limit_watts, self._name)

    def hear(self, errors: XidErrors) -> None:
        """Count the device's errors until the end. A thread of its own."""
        while not self._ending.is_set():
            try:
                xid = errors.wait(WAIT_S)
            except NvmlSilent as silent:
                log.warning("the driver of %s tells no XID errors: %s", self._name, silent)
                self._ending.wait(ASK_AGAIN_S)
                continue
            if xid is not None:
                kind = metrics.XID_KINDS[xid not in APPLICATION_XIDS]
                metrics.gpu_xid_errors_total.labels(self._name, kind).inc()
                log.error("XID %d on %s", xid, self._name)
        errors.close()

    def _find(self, uuid: str) -> None:
        library = self._open()
        self._card = find_card(library, uuid) if library is not None else None
        self._name = f"GPU-{uuid}" if self._card is None else self._card.name
        errors = self._card.errors() if self._card is not None else None
        if self._card is None:
            log.info("NVML tells nothing of %s: its gauges are torch's alone", self._name)
        elif errors is None:
            log.info("NVML tells no XID errors of %s", self._name)
        else:
            for kind in metrics.XID_KINDS:
                metrics.gpu_xid_errors_total.labels(self._name, kind)
            self._run(lambda: self.hear(errors), "gpu-errors")

    def _keep_looking(self) -> None:
        self.look()
        while not self._ending.wait(READ_EVERY_S):
            self.look()

    def _run(self, work: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()


@contextmanager
def watching(settings: ComputeSettings) -> Iterator[None]:
    """Keep the gauges of the GPU that `settings` choose for as long as the block lasts; nothing at
    all without one. Raises `InvalidSetting` as `place` does."""
    device = chosen_device(settings)
    if device.type != "cuda":
        yield
        return
    watch = GpuWatch(lambda: held_on(device))
    watch.start()
    try:
        yield
    finally:
        watch.stop()


def _show(gauge: Gauge, value: float | None, *labels: str) -> None:
    """A value that is not to be had is no sample."""
    if value is None:
        gauge.remove(*labels)
    else:
        gauge.labels(*labels).set(value)
