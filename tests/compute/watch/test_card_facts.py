"""The GPU of this machine, asked for without torch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from predictors.compute.checkpoint.summary import CardFacts
from predictors.compute.watch import card_facts
from predictors.compute.watch.card_facts import find_card_facts


class DriverError(Exception):
    """As NVML raises it."""


def library(**values: Any) -> SimpleNamespace:
    """A stand-in for `pynvml` with one card, number 0."""

    def handle(index: int) -> int:
        if index != 0:
            raise DriverError(index)
        return index

    return SimpleNamespace(
        NVMLError=DriverError,
        nvmlDeviceGetHandleByIndex=handle,
        nvmlDeviceGetName=lambda _: values.get("name", "NVIDIA L4"),
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(total=24 * 10**9),
        nvmlDeviceGetCudaComputeCapability=lambda _: values.get("capability", (8, 9)),
    )


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card_facts, "open_library", lambda: None)


@pytest.mark.parametrize(
    ("capability", "has_fp8"), [((8, 0), False), ((8, 6), False), ((8, 9), True), ((12, 0), True)]
)
def test_a_card_is_described_by_nvml(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], has_fp8: bool
) -> None:
    monkeypatch.setattr(card_facts, "open_library", lambda: library(capability=capability))
    assert find_card_facts("auto", {}) == CardFacts(24 * 10**9, has_fp8, "NVIDIA L4")


@pytest.mark.parametrize(
    ("device", "environ", "is_found"),
    [
        ("cuda", {}, True),
        ("cuda:0", {}, True),
        ("cuda:1", {}, False),
        ("cuda:1", {"CUDA_VISIBLE_DEVICES": "3,0"}, True),
        ("auto", {"CUDA_VISIBLE_DEVICES": "3,0"}, False),
        ("auto", {"CUDA_VISIBLE_DEVICES": ""}, False),
        ("auto", {"CUDA_VISIBLE_DEVICES": "GPU-5e1f"}, False),
        ("cpu", {}, False),
        ("cuda:x", {}, False),
    ],
)
def test_the_device_is_counted_among_the_visible_ones(
    monkeypatch: pytest.MonkeyPatch, device: str, environ: dict[str, str], is_found: bool
) -> None:
    monkeypatch.setattr(card_facts, "open_library", library)
    monkeypatch.setattr(card_facts, "QUERY", ("false",))
    assert (find_card_facts(device, environ).memory_bytes is not None) == is_found


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize(
    ("printed", "facts"),
    [
        ("NVIDIA H200, 143771, 9.0", CardFacts(143771 * 2**20, True, "NVIDIA H200")),
        ("NVIDIA A10, 23028, 8.6", CardFacts(23028 * 2**20, False, "NVIDIA A10")),
        ("NVIDIA H200, [N/A], 9.0", CardFacts()),
        ("No devices were found", CardFacts()),
        ("", CardFacts()),
    ],
)
def test_without_nvml_the_drivers_command_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, printed: str, facts: CardFacts
) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\necho '{printed}'\n")
    command.chmod(0o755)
    monkeypatch.setattr(card_facts, "QUERY", (str(command), *card_facts.QUERY[1:]))
    assert find_card_facts("auto", {}) == facts


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize("command", ["/nowhere/nvidia-smi", "false"])
def test_without_a_driver_nothing_is_known(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(card_facts, "QUERY", (command,))
    assert find_card_facts("auto", {}) == CardFacts()
