"""Energy that the machine's first NVIDIA card takes during work, by its driver's counter, which
moves every 20 to 100 ms: work of a few seconds is known to some percent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from predictors.compute.watch.nvml import Card, find_card, open_library

T = TypeVar("T")


def first_card(library: Callable[[], Any] = open_library) -> Card | None:
    """The card with NVML's index 0, or None without a driver. Benchmarks run on this one."""
    nvml = library()
    if nvml is None:
        return None
    try:
        uuid = nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(0))
    except nvml.NVMLError:
        return None
    return find_card(nvml, uuid.removeprefix("GPU-"))


def joules_of(work: Callable[[], T], card: Card | None) -> tuple[float | None, T]:
    """The result of `work`, and the energy until then, idle time included; None if not known. The
    work must have left the card idle."""
    before = None if card is None else card.energy_joules()
    result = work()
    after = None if card is None else card.energy_joules()
    return (None if before is None or after is None else after - before), result
