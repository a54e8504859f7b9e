"""Copies between host and device that block neither: pinned and asynchronous on CUDA, no copy on
the CPU. On CUDA they run on the current stream, so a kernel launched after `to_device` sees the
data.
"""

from __future__ import annotations

import torch

from predictors.compute.device.placement import Placement


def to_device(
    tensor: torch.Tensor, placement: Placement, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """A host tensor of any shape on the device, in `dtype` if given. The host does not wait."""
    if not placement.is_cuda:
        return tensor if dtype is None else tensor.to(dtype)
    # torch's pinned allocator keeps the block until the copy has run
    moved = tensor.pin_memory().to(placement.device, non_blocking=True)
    return moved if dtype is None else moved.to(dtype)


class HostCopy:
    """A copy to the host in flight. `result` waits for this copy only, not for later kernels."""

    def __init__(self, tensor: torch.Tensor, event: torch.cuda.Event | None) -> None:
        self._tensor = tensor
        self._event = event

    def result(self) -> torch.Tensor:
        """The data on the host. Call it after everything else of the step is launched."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor


def to_host_async(tensor: torch.Tensor) -> HostCopy:
    """Start to copy a device tensor of any shape to pinned host memory. On the CPU the tensor
    itself is the result."""
    if tensor.device.type != "cuda":
        return HostCopy(tensor, None)
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return HostCopy(host, event)
