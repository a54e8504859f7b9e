"""What NVIDIA's driver says of one device, through NVML: memory, load, heat, power, XID errors.
Knows no series, no thread and no torch.

`nvidia-ml-py` (the extra `gpu`) is NVIDIA's own binding, a ctypes module that lets go of the
interpreter while the driver answers. Whatever driver, card, container or slice refuses to tell is
None here: absent, no error. Any thread, for NVML is thread-safe; a call may block while a card is
in trouble.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ANY_SLICE = 0xFFFFFFFF  # NVML's word for an event that is the whole card's


class NvmlSilent(Exception):
    """The driver does not tell of errors (any more)."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a device. `memory_bytes` has `used`, `free` and `total`, or nothing."""

    memory_bytes: Mapping[str, int]
    utilization: float | None
    """Share of the driver's last sample in which a kernel ran, 0 to 1."""
    temperature_celsius: float | None
    power_watts: float | None
    power_limit_watts: float | None


def open_library() -> Any:
    """The module `pynvml`, initialised, or None without the package or without a driver."""
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
    """The device that CUDA calls `uuid`, without NVML's prefix; on a card that is cut into slices
    (MIG) the slice. None when NVML can't tell which it is."""
    for kind in ("MIG", "GPU"):
        name = f"{kind}-{uuid}"
        handle = _ask(library, "nvmlDeviceGetHandleByUUID", name)
        if handle is not None:
            break
    else:
        return None
    mode = _ask(library, "nvmlDeviceGetMigMode", handle)
    if kind == "GPU" and mode is not None and mode[0]:
        # CUDA named the card: if the container shows one slice of it, that is ours
        count = _ask(library, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0
        numbers = ((handle, number) for number in range(count))
        asked = (_ask(library, "nvmlDeviceGetMigDeviceHandleByIndex", *each) for each in numbers)
        slices = [found for found in asked if found is not None]
        if len(slices) != 1:
            return None
        handle = slices[0]
    return Card(library, handle, _ask(library, "nvmlDeviceGetUUID", handle) or name)


class Card:
    """A GPU or a slice of one. `name` is its UUID as NVML writes it."""

    def __init__(self, library: Any, handle: Any, name: str) -> None:
        self.name = name
        self._library = library
        self._handle = handle

    def read(self) -> Reading:
        """Some milliseconds at most on a card that is well."""
        memory = self._told("nvmlDeviceGetMemoryInfo")
        rates = self._told("nvmlDeviceGetUtilizationRates")
        heat = self._told("nvmlDeviceGetTemperature", self._library.NVML_TEMPERATURE_GPU)
        power = self._told("nvmlDeviceGetPowerUsage")  # milliwatts
        limit = self._told("nvmlDeviceGetEnforcedPowerLimit")
        states = () if memory is None else ("used", "free", "total")
        return Reading(
            memory_bytes={state: int(getattr(memory, state)) for state in states},
            utilization=None if rates is None else rates.gpu / 100,
            temperature_celsius=None if heat is None else float(heat),
            power_watts=None if power is None else power / 1000,
            power_limit_watts=None if limit is None else limit / 1000,
        )

    def errors(self) -> XidErrors | None:
        """The device's XID errors from now on, or None where the driver does not tell them."""
        card, own = self._handle, ANY_SLICE
        # c_uint, as the binding has it
        if bool(self._told("nvmlDeviceIsMigDeviceHandle")):
            card = self._told("nvmlDeviceGetDeviceHandleFromMigDeviceHandle")
            own = self._told("nvmlDeviceGetGpuInstanceId")
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

    def _told(self, function: str, *more: Any) -> Any:
        return _ask(self._library, function, self._handle, *more)


class XidErrors:
    """What the driver reports of a card, or of its slice `own`. One thread."""

    def __init__(self, library: Any, events: Any, own: int) -> None:
        self._library = library
        self._events = events
        self._own = own

    def wait(self, timeout_s: float) -> int | None:
        """The number of the next error, or None after the time; raises `NvmlSilent` at once when
        the driver can't be asked."""
        try:
            told = self._library.nvmlEventSetWait_v2(self._events, round(timeout_s * 1000))
        except self._library.NVMLError as error:
            if error.value == self._library.NVML_ERROR_TIMEOUT:
                return None
            raise NvmlSilent(str(error)) from error
        is_ours = ANY_SLICE in (self._own, told.gpuInstanceId) or told.gpuInstanceId == self._own
        if not is_ours or told.eventType != self._library.nvmlEventTypeXidCriticalError:
            return None
        return int(told.eventData)

    def close(self) -> None:
        """No `wait` after this."""
        _ask(self._library, "nvmlEventSetFree", self._events)


def _ask(library: Any, function: str, *arguments: Any) -> Any:
    """What NVML answers, or None when it refuses."""
    try:
        return getattr(library, function)(*arguments)
    except library.NVMLError:
        return None
