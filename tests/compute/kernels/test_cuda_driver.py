"""The driver's structures have the layout of `cuda.h`; on a card its refusals have their names."""

from __future__ import annotations

import ctypes

import pytest
import torch

from predictors.compute.kernels import cuda_driver
from predictors.compute.kernels.cuda_driver import MAP_BYTES, DriverError, tensor_map


def test_structures_lie_as_in_the_drivers_header() -> None:
    """`CUlaunchConfig` and `CUlaunchAttribute` of CUDA 12.3 to 13.2, in bytes."""
    config, attribute = cuda_driver._LaunchConfig, cuda_driver._Attribute
    assert (ctypes.sizeof(config), ctypes.sizeof(attribute)) == (56, 72)
    offsets = [getattr(config, name).offset for name, *_ in config._fields_]
    assert offsets == [0, 12, 24, 32, 40, 48]
    assert attribute.value.offset == 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_maps_lie_at_multiples_of_their_size_and_a_refused_one_names_the_call() -> None:
    weight = torch.zeros(64, 128, device="cuda", dtype=torch.bfloat16)
    made = [tensor_map(weight.data_ptr(), (128, 64), (256,), (64, 8)) for _ in range(50)]
    assert all(ctypes.addressof(each) % MAP_BYTES == 0 for each in made)
    with pytest.raises(DriverError, match="cuTensorMapEncodeTiled: CUDA_ERROR_INVALID_VALUE"):
        tensor_map(weight.data_ptr(), (128, 64), (250,), (64, 8))
