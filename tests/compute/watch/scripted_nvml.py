"""A replacement for `pynvml` on machines without a driver: the functions that we call, with values
that a test sets.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from ctypes import c_uint
from types import SimpleNamespace
from typing import Any

from tests.fakes import PATIENCE_S

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
    """A card, whole or with slices. Functions named in `refused` raise, as NVML's do. `report` has
    it tell an error. The waits are for the threads that call it."""

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
        self._events: queue.Queue[tuple[int, int] | Exception] = queue.Queue()
        self._holds_event = False
        self._called = threading.Condition()
        self._calls: Counter[str] = Counter()
        self.registered: list[tuple[str, int]] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def answered(*arguments: Any) -> Any:
            with self._called:
                self._calls[name] += 1
                self._called.notify_all()
            if name in self.refused:
                raise self.NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
            own = getattr(self, f"_{name}", None)
            return own(*arguments) if own is not None else ANSWERS[name]

        return answered

    # -- for tests -------------------------------------------------------------------------------
    def report(self, event: tuple[int, int] | Exception) -> None:
        """Tell this error, a (number, slice), or raise this."""
        self._events.put(event)

    def wait_handled(self) -> None:
        """Wait until all that was reported has been dealt with: the next event is waited for."""
        handled = self._events.all_tasks_done
        with handled:
            assert handled.wait_for(lambda: not self._events.unfinished_tasks, PATIENCE_S)

    def wait_called(self, name: str, more: int = 1) -> None:
        """Wait for so many more calls of a function."""
        with self._called:
            wanted = self._calls[name] + more
            assert self._called.wait_for(lambda: self._calls[name] >= wanted, PATIENCE_S), name

    def num_calls(self, name: str) -> int:
        with self._called:
            return self._calls[name]

    # -- functions -------------------------------------------------------------------------------
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
        self._end_event()

    def _nvmlEventSetWait_v2(self, events: str, timeout_ms: int) -> SimpleNamespace:  # noqa: N802
        self._end_event()
        try:
            event = self._events.get(timeout=timeout_ms / 1000)
        except queue.Empty:
            raise self.NVMLError(self.NVML_ERROR_TIMEOUT) from None
        self._holds_event = True
        if isinstance(event, Exception):
            raise event
        kind = self.nvmlEventTypeXidCriticalError
        return SimpleNamespace(eventType=kind, eventData=event[0], gpuInstanceId=event[1])

    def _end_event(self) -> None:
        """The caller has dealt with the last event."""
        if self._holds_event:
            self._holds_event = False
            self._events.task_done()
