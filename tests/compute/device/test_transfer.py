"""On the CPU a transfer returns the tensor itself, in the dtype asked for."""

from __future__ import annotations

import torch

from predictors.compute.device.placement import Placement
from predictors.compute.device.transfer import to_device, to_host_async

CPU = Placement(torch.device("cpu"), torch.float32, "off")


def test_to_device_copies_nothing_on_the_cpu() -> None:
    x = torch.ones(3)
    assert to_device(x, CPU).data_ptr() == x.data_ptr()
    assert to_device(x, CPU, torch.float64).dtype == torch.float64


def test_to_host_is_the_same_memory_on_the_cpu() -> None:
    x = torch.arange(3)
    assert to_host_async(x).result().data_ptr() == x.data_ptr()
