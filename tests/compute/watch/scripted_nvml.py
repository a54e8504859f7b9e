"""A replacement for `pynvml` on machines without a driver: the functions that we call, with values
that a test sets.
"""

from __future__ import annotations

import queue
from ctypes import c_uint
from types import SimpleNamespace
from typing import Any

CARD = "5a1d0a3c-0000-4000-8000-000000000001"
SLICE = "5a1d0a3c-0000-4000-8000-000000000002"
WHOLE_CARD = 0xFFFFFFFF
ANSWERS: dict[str, Any] = {
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=30, free=70, total=100),
    "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=37, memory=12),
    "nvmlDeviceGetTemperature": 54,
    "nvmlDeviceGetPowerUsage": 412_500,
    "nvmlDeviceGetEnforcedPowerLimit": 700_000,
}


class ScriptedNvml:
    """A card, whole or with slices. Functions named in `refused` raise, as NVML's do. `events` are
    the errors that it will report, each a (number, slice) or an exception."""

    NVML_TEMPERATURE_GPU = 0
    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_TIMEOUT = 10
    NVML_ERROR_GPU_IS_LOST = 15
    nvmlEventTypeXidCriticalError = 8  # noqa: N815 - NVIDIA's name

    class NVMLError(Exception):
        """The exception of the binding."""

        def __init__(self, value: int) -> None:
            super().__init__(f"error {value}")
            self.value = value

    def __init__(self, *refused: str, slices: int = 0, by_slice: bool = True) -> None:
        self.refused = set(refused)
        self.slices = slices
        self.names = {f"GPU-{CARD}": "card"}
        if slices and by_slice:
            self.names[f"MIG-{SLICE}"] = "slice 0"
        self.millijoules = 5_000_000
        self.events: queue.Queue[tuple[int, int] | Exception] = queue.Queue()
        self.freed = 0
        self.registered: list[tuple[str, int]] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def answered(*arguments: Any) -> Any:
            if name in self.refused:
                raise self.NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
            own = getattr(self, f"_{name}", None)
            return own(*arguments) if own is not None else ANSWERS[name]

        return answered

    def _nvmlDeviceGetHandleByUUID(self, name: str) -> str:  # noqa: N802
        if name not in self.names:
            raise self.NVMLError(6)
        return self.names[name]

    def _nvmlDeviceGetUUID(self, handle: str) -> str:  # noqa: N802
        return f"GPU-{CARD}" if handle == "card" else f"MIG-{SLICE}"

    def _nvmlDeviceGetMigMode(self, handle: str) -> list[int]:  # noqa: N802
        return [int(self.slices > 0)] * 2

    def _nvmlDeviceGetMaxMigDeviceCount(self, handle: str) -> int:  # noqa: N802
        return 7

    def _nvmlDeviceGetMigDeviceHandleByIndex(self, handle: str, index: int) -> str:  # noqa: N802
        if index >= self.slices:
            raise self.NVMLError(6)
        return f"slice {index}"

    def _nvmlDeviceIsMigDeviceHandle(self, handle: str) -> c_uint:  # noqa: N802
        return c_uint(handle != "card")

    def _nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: str) -> str:  # noqa: N802
        return "card"

    def _nvmlDeviceGetGpuInstanceId(self, handle: str) -> int:  # noqa: N802
        return int(handle.removeprefix("slice "))

    def _nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        if handle != "card":
            raise self.NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return self.millijoules

    def _nvmlEventSetCreate(self) -> str:  # noqa: N802
        return "events"

    def _nvmlDeviceRegisterEvents(self, handle: str, kinds: int, events: str) -> None:  # noqa: N802
        self.registered.append((handle, kinds))

    def _nvmlEventSetFree(self, events: str) -> None:  # noqa: N802
        self.freed += 1

    def _nvmlEventSetWait_v2(self, events: str, timeout_ms: int) -> SimpleNamespace:  # noqa: N802
        try:
            event = self.events.get(timeout=timeout_ms / 1000)
        except queue.Empty:
            raise self.NVMLError(self.NVML_ERROR_TIMEOUT) from None
        if isinstance(event, Exception):
            raise event
        kind = self.nvmlEventTypeXidCriticalError
        return SimpleNamespace(eventType=kind, eventData=event[0], gpuInstanceId=event[1])
