"""Reads memory, load, heat, power, energy and XID errors of a GPU from NVIDIA's driver, by NVML.

`nvidia-ml-py` (the extra `gpu`) is NVIDIA's ctypes binding, which releases the interpreter's lock
during calls. A value that the driver, the container or a MIG slice does not give is None. NVML is
thread-safe; a call may block while a card has a fault.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ANY_SLICE = 0xFFFFFFFF  # NVML's GPU instance of events of the whole card


class XidUnavailable(Exception):
    """The driver does not report XID errors, or no longer does."""


@dataclass(frozen=True, slots=True)
class GpuReading:
    """Values of a device at one time. `memory_bytes` has `used`, `free` and `total`, or nothing."""

    memory_bytes: Mapping[str, int]
    utilization: float | None
    """Share of the driver's last sample in which a kernel ran, 0 to 1."""
    temperature_celsius: float | None
    power_watts: float | None
    power_limit_watts: float | None


def open_library() -> Any:
    """The initialised module `pynvml`, or None without the package or a driver."""
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        library.nvmlInit()
    except library.NVMLError:
        return None
    return library


def find_card(library: Any, uuid: str) -> Card | None:
    """The device, or its MIG slice, with CUDA's `uuid` (without NVML's prefix), or None."""
    for kind in ("MIG", "GPU"):
        name = f"{kind}-{uuid}"
        handle = _ask(library, "nvmlDeviceGetHandleByUUID", name)
        if handle is not None:
            break
    else:
        return None
    mode = _ask(library, "nvmlDeviceGetMigMode", handle)
    if kind == "GPU" and mode is not None and mode[0]:
        # CUDA gave the card's uuid: if the container shows one slice of it, that is the device
        count = _ask(library, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0
        numbers = ((handle, number) for number in range(count))
        asked = (_ask(library, "nvmlDeviceGetMigDeviceHandleByIndex", *each) for each in numbers)
        slices = [found for found in asked if found is not None]
        if len(slices) != 1:
            return None
        handle = slices[0]
    return Card(library, handle, _ask(library, "nvmlDeviceGetUUID", handle) or name)


class Card:
    """A GPU or a MIG slice. `name` is its UUID with NVML's prefix."""

    def __init__(self, library: Any, handle: Any, name: str) -> None:
        self.name = name
        self._library = library
        self._handle = handle

    def read(self) -> GpuReading:
        """All values. Takes a few milliseconds unless the card has a fault."""
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        rates = self._ask("nvmlDeviceGetUtilizationRates")
        heat = self._ask("nvmlDeviceGetTemperature", self._library.NVML_TEMPERATURE_GPU)
        power = self._ask("nvmlDeviceGetPowerUsage")  # milliwatts
        limit = self._ask("nvmlDeviceGetEnforcedPowerLimit")
        states = () if memory is None else ("used", "free", "total")
        return GpuReading(
            memory_bytes={state: int(getattr(memory, state)) for state in states},
            utilization=None if rates is None else rates.gpu / 100,
            temperature_celsius=None if heat is None else float(heat),
            power_watts=None if power is None else power / 1000,
            power_limit_watts=None if limit is None else limit / 1000,
        )

    def energy_joules(self) -> float | None:
        """Energy that the card took since its driver was loaded; None for a slice."""
        energy = self._ask("nvmlDeviceGetTotalEnergyConsumption")  # millijoules
        return None if energy is None else energy / 1000

    def errors(self) -> XidErrors | None:
        """The device's XID errors from now on, or None if the driver does not report them."""
        card, own = self._handle, ANY_SLICE
        # c_uint, as the binding has it
        if bool(self._ask("nvmlDeviceIsMigDeviceHandle")):
            card = self._ask("nvmlDeviceGetDeviceHandleFromMigDeviceHandle")
            own = self._ask("nvmlDeviceGetGpuInstanceId")
        events = _ask(self._library, "nvmlEventSetCreate")
        if card is None or own is None or events is None:
            return None
        try:
            kind = self._library.nvmlEventTypeXidCriticalError
            self._library.nvmlDeviceRegisterEvents(card, kind, events)
        except self._library.NVMLError:
            _ask(self._library, "nvmlEventSetFree", events)
            return None
        return XidErrors(self._library, events, own)

    def _ask(self, function: str, *more: Any) -> Any:
        return _ask(self._library, function, self._handle, *more)


class XidErrors:
    """XID errors of a card, or of its slice `own`. One thread."""

    def __init__(self, library: Any, events: Any, own: int) -> None:
        self._library = library
        self._events = events
        self._own = own

    def wait(self, timeout_s: float) -> int | None:
        """The number of the next error, or None after `timeout_s`. Raises `XidUnavailable` at once
        if the driver can't be asked."""
        try:
            event = self._library.nvmlEventSetWait_v2(self._events, round(timeout_s * 1000))
        except self._library.NVMLError as error:
            if error.value == self._library.NVML_ERROR_TIMEOUT:
                return None
            raise XidUnavailable(str(error)) from error
        is_ours = ANY_SLICE in (self._own, event.gpuInstanceId) or event.gpuInstanceId == self._own
        if not is_ours or event.eventType != self._library.nvmlEventTypeXidCriticalError:
            return None
        return int(event.eventData)

    def close(self) -> None:
        """Free the event set; `wait` must not be called afterwards."""
        _ask(self._library, "nvmlEventSetFree", self._events)


def _ask(library: Any, function: str, *arguments: Any) -> Any:
    """The result of an NVML call, or None if it fails."""
    try:
        return getattr(library, function)(*arguments)
    except library.NVMLError:
        return None
