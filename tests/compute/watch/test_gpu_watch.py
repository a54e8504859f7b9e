"""The gauges of the GPU exist while torch or the driver gives a value, and not on a CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from prometheus_client import REGISTRY

from predictors import metrics
from predictors.compute.watch import gpu_watch
from predictors.compute.watch.gpu_watch import GpuWatch, TorchMemory, torch_memory
from predictors.compute.watch.nvml import find_card, open_library
from predictors.settings import ComputeSettings
from tests.compute.watch.scripted_nvml import CARD, SLICE, WHOLE_CARD, ScriptedNvml
from tests.fakes import PATIENCE_S

NAME = f"GPU-{CARD}"
HELD = TorchMemory(CARD, {"allocated": 10, "reserved": 20, "peak": 15, "total": 99})
BY_DRIVER = ("utilization_ratio", "temperature_celsius", "power_watts", "power_limit_watts")


@pytest.fixture(autouse=True)
def no_samples_are_left() -> Iterator[None]:
    yield
    for series in (getattr(metrics, name) for name in dir(metrics) if name.startswith("gpu_")):
        series.clear()


def sample(series: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"predictors_gpu_{series}", labels)


def states(device: str = NAME) -> dict[str, float | None]:
    gauges = {
        state: sample("memory_bytes", device=device, state=state) for state in metrics.GPU_MEMORY
    }
    return {state: value for state, value in gauges.items() if value is not None}


@contextmanager
def watched(
    library: Any, held: Callable[[], TorchMemory | None] = lambda: HELD
) -> Iterator[GpuWatch]:
    watch = GpuWatch(held, lambda: library)
    watch.update()
    try:
        yield watch
    finally:
        watch.stop()
        wait_ended(watch)  # the next test has no samples of this one's threads


def wait_ended(watch: GpuWatch) -> None:
    """Wait for the threads, for which `stop` waits a while."""
    for thread in watch._threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), thread.name


def test_torch_and_driver_are_shown_together() -> None:
    with watched(ScriptedNvml()):
        assert states() == {
            "allocated": 10, "reserved": 20, "peak": 15, "used": 30, "free": 70, "total": 100,
        }  # fmt: skip
        assert [sample(name, device=NAME) for name in BY_DRIVER] == [0.37, 54.0, 412.5, 700.0]


def test_without_a_driver_torchs_memory_is_shown() -> None:
    with watched(None):
        assert states() == {"allocated": 10, "reserved": 20, "peak": 15, "total": 99}
        assert [sample(name, device=NAME) for name in BY_DRIVER] == [None] * 4
        assert sample("xid_errors_total", device=NAME, kind="device") is None


def test_a_value_that_the_driver_no_longer_gives_disappears() -> None:
    library = ScriptedNvml()
    with watched(library) as watch:
        library.refused |= {"nvmlDeviceGetPowerUsage", "nvmlDeviceGetMemoryInfo"}
        watch.update()
        assert set(states()) == {"allocated", "reserved", "peak", "total"}
        assert sample("power_watts", device=NAME) is None
        assert sample("temperature_celsius", device=NAME) == 54.0


def test_nothing_is_read_before_cuda_is_initialised() -> None:
    held: list[TorchMemory | None] = [None]
    opened: list[int] = []

    def library() -> Any:
        opened.append(1)
        return ScriptedNvml()

    watch = GpuWatch(lambda: held[0], library)
    watch.update()
    assert (opened, states()) == ([], {})
    held[0] = HELD
    watch.update()
    watch.update()
    watch.stop()
    assert opened == [1]
    assert states()["allocated"] == 10


def test_errors_are_counted_from_zero_by_kind(caplog: pytest.LogCaptureFixture) -> None:
    library = ScriptedNvml()

    def counts() -> list[float | None]:
        return [sample("xid_errors_total", device=NAME, kind=kind) for kind in metrics.XID_KINDS]

    with watched(library):
        assert counts() == [0, 0]
        for xid in (31, 79, 13):
            library.report((xid, WHOLE_CARD))
        library.wait_handled()
        assert counts() == [2, 1]
        assert f"XID 79 on {NAME}" in caplog.text
    assert library.num_calls("nvmlEventSetFree") == 1


def test_a_driver_that_stops_reporting_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gpu_watch, "RETRY_AFTER_S", 0)
    library = ScriptedNvml()
    with watched(library):
        library.report(library.NVMLError(library.NVML_ERROR_GPU_IS_LOST))
        library.report((48, WHOLE_CARD))
        library.wait_handled()
        assert sample("xid_errors_total", device=NAME, kind="device") == 1
    assert "tells no XID errors" in caplog.text


def test_a_hanging_driver_delays_neither_a_scrape_nor_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_watch, "JOIN_TIMEOUT_S", 0)
    entered, let_go = threading.Event(), threading.Event()

    def library() -> Any:
        entered.set()
        let_go.wait(PATIENCE_S)

    watch = GpuWatch(lambda: HELD, library)
    watch.start()
    assert entered.wait(PATIENCE_S)
    assert states() == {}
    watch.stop()  # returns although the thread can't
    let_go.set()
    wait_ended(watch)  # what it shows yet must not be there in the next test


def test_energy_is_counted_by_window_and_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_watch, "ENERGY_EVERY_S", 0)
    library, windows = ScriptedNvml(), list[tuple[float, float]]()
    # a reading per second; the driver's counter does not move in the third, and is reset in the
    # fifth
    readings = iter((5_000_000, 5_350_000, 5_350_000, 6_050_000, 10_000, 110_000))
    seconds = iter(range(6))

    def clock() -> float:
        try:
            return next(seconds)
        finally:
            library.millijoules = next(readings, library.millijoules)

    library.millijoules = next(readings)
    watch = GpuWatch(lambda: HELD, lambda: None, lambda *window: windows.append(window))
    watch.update()  # the name without a driver
    card = find_card(library, CARD)
    assert card is not None
    with pytest.raises(StopIteration):
        watch.follow_energy(card, clock)
    assert windows == [(350, 1), (700, 2), (100, 1)]
    assert sample("energy_joules_total", device=NAME) == 1150


def test_a_slice_has_no_energy() -> None:
    library = ScriptedNvml(slices=1)
    card = find_card(library, SLICE)
    assert card is not None
    assert card.energy_joules() is None


def test_a_thread_updates_the_gauges_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_watch, "READ_EVERY_S", 0.01)
    library, power = ScriptedNvml(), "nvmlDeviceGetPowerUsage"
    watch = GpuWatch(lambda: HELD, lambda: library)
    watch.start()
    library.wait_called(power, more=2)  # what the first call gave is shown before the second
    assert sample("power_watts", device=NAME) == 412.5
    library.refused.add(power)
    library.wait_called(power, more=2)
    assert sample("power_watts", device=NAME) is None
    watch.stop()
    wait_ended(watch)
    assert not watchers()


def watchers() -> set[str]:
    ours = {"gpu-gauges", "gpu-errors", "gpu-energy"}
    return ours & {thread.name for thread in threading.enumerate()}


def test_a_cpu_has_no_threads_and_no_samples() -> None:
    with gpu_watch.watch_gpu(ComputeSettings(device="cpu")):
        assert not watchers()
    assert torch_memory(torch.device("cuda", 0)) is None or torch.cuda.is_initialized()
    assert not [
        sample.name
        for family in REGISTRY.collect()
        if family.name.startswith("predictors_gpu_")
        for sample in family.samples
    ]


@pytest.mark.gpu
def test_a_card_and_its_driver_agree_with_torch() -> None:
    """Needs the extra `gpu` (nvidia-ml-py) and access to the driver."""
    library = open_library()
    assert library is not None, "no NVML: is nvidia-ml-py installed?"
    device = torch.device("cuda", 0)
    block = torch.ones(2**28, dtype=torch.uint8, device=device)
    held = torch_memory(device)
    assert held is not None
    with watched(library, lambda: torch_memory(device)) as watch:
        found = {
            labels["device"]
            for family in REGISTRY.collect()
            if family.name == "predictors_gpu_memory_bytes"
            for labels in (sample.labels for sample in family.samples)
        }
        assert len(found) == 1
        (name,) = found
        assert held.uuid in name or name.startswith("MIG-")
        gauges = states(name)
        assert set(gauges) == set(metrics.GPU_MEMORY)
        numbers = {state: value or 0.0 for state, value in gauges.items()}
        assert numbers["allocated"] >= block.nbytes
        assert numbers["peak"] >= numbers["allocated"]
        assert numbers["used"] >= numbers["reserved"] >= numbers["allocated"]
        assert numbers["used"] + numbers["free"] == pytest.approx(numbers["total"], rel=0.02)
        before = numbers["used"]
        more = torch.ones(2**30, dtype=torch.uint8, device=device)
        torch.cuda.synchronize()
        watch.update()
        after = states(name)["used"] or 0.0
        assert after - before >= 0.9 * more.nbytes, "the driver does not see this process's memory"
        if name.startswith("GPU-"):  # the driver gives fewer values of a slice
            assert 0 <= (sample("utilization_ratio", device=name) or 0.0) <= 1
            assert 10 < (sample("temperature_celsius", device=name) or 0.0) < 110
            watts = sample("power_watts", device=name) or 0.0
            assert 0 < watts < 1.2 * (sample("power_limit_watts", device=name) or 0.0)
