"""Updates the metrics of this process's GPU: torch's memory, the driver's values, XID errors.

Daemon threads read values every few seconds and energy twice a second, and wait for errors, so a
slow driver delays neither a request nor a scrape. A driver that never answers leaves the last
values in place. Nothing is read before CUDA is initialised elsewhere, and without a GPU there are
no threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from prometheus_client import Gauge

from predictors import metrics
from predictors.compute.device.placement import chosen_device
from predictors.compute.watch.nvml import (
    Card,
    GpuReading,
    XidErrors,
    XidUnavailable,
    find_card,
    open_library,
)
from predictors.settings import ComputeSettings

log = logging.getLogger(__name__)

READ_EVERY_S = 5.0
ENERGY_EVERY_S = 0.5
"""Drivers count energy on every 20 to 100 ms, so that a shorter window would be wrong by more."""
WAIT_S = 0.5  # per wait for an error, which is also how long it may delay the end of the process
RETRY_AFTER_S = 30.0  # if the driver does not report errors
JOIN_TIMEOUT_S = 2.0  # for a thread that is inside a driver call when the process ends

# caused by the program and not by the card, by NVIDIA's catalogue: engine exception, page fault,
# stopped, clean-up after another error, video exception, context switch timeout
APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 109})


OnEnergy = Callable[[float, float], object]
"""Takes the joules of a window and its seconds. Called on a thread of the watch."""


def ignore_energy(joules: float, seconds: float) -> None:
    """The `OnEnergy` of a process without models."""


@dataclass(frozen=True, slots=True)
class TorchMemory:
    """torch's memory on a device. `memory_bytes` has `allocated`, `reserved`, `peak` and `total`;
    `uuid` is CUDA's, without NVML's prefix."""

    uuid: str
    memory_bytes: Mapping[str, int]


def torch_memory(device: torch.device) -> TorchMemory | None:
    """The memory that this process has on `device`, or None before CUDA is initialised. Any thread;
    reads the allocator's statistics, not the device."""
    if not torch.cuda.is_initialized():
        return None
    properties = torch.cuda.get_device_properties(device)
    statistics = torch.cuda.memory_stats_as_nested_dict(device)
    memory_bytes = {
        "allocated": statistics["allocated_bytes"]["all"]["current"],
        "reserved": statistics["reserved_bytes"]["all"]["current"],
        "peak": statistics["allocated_bytes"]["all"]["peak"],
        "total": properties.total_memory,
    }
    return TorchMemory(str(properties.uuid), memory_bytes)


class GpuWatch:
    """Metrics of one device. `read_torch` gives torch's memory, `library` opens NVML, `on_energy`
    learns what the device takes."""

    def __init__(
        self,
        read_torch: Callable[[], TorchMemory | None],
        library: Callable[[], Any] = open_library,
        on_energy: OnEnergy = ignore_energy,
    ) -> None:
        self._on_energy = on_energy
        self._read_torch = read_torch
        self._open = library
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        self._name = ""
        self._card: Card | None = None

    def start(self) -> None:
        self._run(self._update_regularly, "gpu-gauges")

    def stop(self) -> None:
        """End the threads. Blocks for at most `JOIN_TIMEOUT_S` if one is inside the driver."""
        self._ending.set()
        for thread in list(self._threads):
            thread.join(JOIN_TIMEOUT_S)

    def update(self) -> None:
        """Read all values and set the gauges. One thread; blocks until the driver answers."""
        memory = self._read_torch()
        if memory is None:
            return
        if not self._name:
            self._find(memory.uuid)
        read = (
            self._card.read() if self._card is not None else GpuReading({}, None, None, None, None)
        )
        memory_bytes = {**memory.memory_bytes, **read.memory_bytes}
        for state in metrics.GPU_MEMORY:
            _show(metrics.gpu_memory_bytes, memory_bytes.get(state), self._name, state)
        _show(metrics.gpu_utilization_ratio, read.utilization, self._name)
        _show(metrics.gpu_temperature_celsius, read.temperature_celsius, self._name)
        _show(metrics.gpu_power_watts, read.power_watts, self._name)
        _show(metrics.gpu_power_limit_watts, read.power_limit_watts, self._name)

    def count_errors(self, errors: XidErrors) -> None:
        """Count the device's errors until `stop`. Runs on a thread of its own."""
        while not self._ending.is_set():
            try:
                xid = errors.wait(WAIT_S)
            except XidUnavailable as error:
                log.warning("the driver of %s tells no XID errors: %s", self._name, error)
                self._ending.wait(RETRY_AFTER_S)
                continue
            if xid is not None:
                kind = metrics.XID_KINDS[xid not in APPLICATION_XIDS]
                metrics.gpu_xid_errors_total.labels(self._name, kind).inc()
                log.error("XID %d on %s", xid, self._name)
        errors.close()

    def follow_energy(self, card: Card, clock: Callable[[], float] = time.monotonic) -> None:
        """Count the energy of `card` until `stop`. Runs on a thread of its own."""
        counted = metrics.gpu_energy_joules_total.labels(self._name)
        before, began = card.energy_joules(), clock()
        while not self._ending.wait(ENERGY_EVERY_S):
            joules, now = card.energy_joules(), clock()
            if joules is None or before is None or joules < before:  # or the driver was reloaded
                before, began = joules, now
            elif joules > before:  # else its counter has not moved yet
                counted.inc(joules - before)
                self._on_energy(joules - before, now - began)
                before, began = joules, now

    def _find(self, uuid: str) -> None:
        library = self._open()
        self._card = find_card(library, uuid) if library is not None else None
        self._name = f"GPU-{uuid}" if self._card is None else self._card.name
        if self._card is not None and self._card.energy_joules() is not None:
            self._run(partial(self.follow_energy, self._card), "gpu-energy")
        errors = self._card.errors() if self._card is not None else None
        if self._card is None:
            log.info("NVML tells nothing of %s: its gauges are torch's alone", self._name)
        elif errors is None:
            log.info("NVML tells no XID errors of %s", self._name)
        else:
            for kind in metrics.XID_KINDS:
                metrics.gpu_xid_errors_total.labels(self._name, kind)
            self._run(lambda: self.count_errors(errors), "gpu-errors")

    def _update_regularly(self) -> None:
        self.update()
        while not self._ending.wait(READ_EVERY_S):
            self.update()

    def _run(self, work: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()


@contextmanager
def watch_gpu(settings: ComputeSettings, on_energy: OnEnergy = ignore_energy) -> Iterator[None]:
    """Update the metrics of the GPU of `settings` while the block runs. Without a GPU it does
    nothing. Raises `InvalidSetting` as `place` does."""
    device = chosen_device(settings)
    if device.type != "cuda":
        yield
        return
    watch = GpuWatch(lambda: torch_memory(device), on_energy=on_energy)
    watch.start()
    try:
        yield
    finally:
        watch.stop()


def _show(gauge: Gauge, value: float | None, *labels: str) -> None:
    if value is None:
        gauge.remove(*labels)
    else:
        gauge.labels(*labels).set(value)
