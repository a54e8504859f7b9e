"""Placement follows the settings and refuses what the machine does not have. A copy to or from the
CPU is the tensor itself, in the dtype asked for.
"""

from __future__ import annotations

import pytest
import torch
from prometheus_client import REGISTRY

from predictors import __version__
from predictors.compute.device.placement import Placement, announce, place, to_device, to_host_async
from predictors.settings import ComputeSettings, InvalidSetting


def test_auto_on_a_cpu_is_float32_uncompiled() -> None:
    placement = place(ComputeSettings(device="cpu"))
    assert (placement.device.type, placement.dtype, placement.compile) == (
        "cpu",
        torch.float32,
        "off",
    )
    assert placement.precision == "float32"
    assert not placement.is_cuda


def test_explicit_choices_are_taken_as_they_are() -> None:
    placement = place(ComputeSettings(device="cpu", dtype="bfloat16", compile="aot_eager"))
    assert (placement.dtype, placement.compile) == (torch.bfloat16, "aot_eager")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (ComputeSettings(device="tpu"), "compute.device"),
        (ComputeSettings(device="meta"), "compute.device"),
        (ComputeSettings(device="cuda:99"), "compute.device"),
    ],
)
def test_an_unavailable_device_is_refused_by_name(settings: ComputeSettings, named: str) -> None:
    with pytest.raises(InvalidSetting, match=named):
        place(settings)


def test_threads_are_set_when_asked_for() -> None:
    before = torch.get_num_threads()
    try:
        place(ComputeSettings(device="cpu", threads=1))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_the_placement_is_shown_in_build_info() -> None:
    announce("announced", place(ComputeSettings(device="cpu", dtype="bfloat16")))
    labels = {"version": __version__, "torch": torch.__version__, "device": "cpu"}
    shown = {"model": "announced", "dtype": "bfloat16", **labels}
    assert REGISTRY.get_sample_value("predictors_build_info", shown) == 1


CPU = Placement(torch.device("cpu"), torch.float32, "off")


def test_to_device_copies_nothing_on_the_cpu() -> None:
    x = torch.ones(3)
    assert to_device(x, CPU).data_ptr() == x.data_ptr()
    assert to_device(x, CPU, torch.float64).dtype == torch.float64


def test_to_host_is_the_same_memory_on_the_cpu() -> None:
    x = torch.arange(3)
    assert to_host_async(x).result().data_ptr() == x.data_ptr()
