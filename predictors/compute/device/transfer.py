"""Copies between host and device that make neither wait: pinned and asynchronous on CUDA, nothing
on the CPU.

Knows no model. On CUDA everything is ordered by the current stream, so a kernel launched after
`to_device` sees the data.
"""

from __future__ import annotations

import torch

from predictors.compute.device.placement import Placement


def to_device(
    tensor: torch.Tensor, placement: Placement, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """`tensor` (host, any shape) on the device, in `dtype` if given. The host never waits for the
    device."""
    if not placement.is_cuda:
        return tensor if dtype is None else tensor.to(dtype)
    # torch's pinned allocator keeps the block alive until the copy that reads it has run
    moved = tensor.pin_memory().to(placement.device, non_blocking=True)
    return moved if dtype is None else moved.to(dtype)


class HostCopy:
    """A copy to the host under way; `result` waits for this copy alone, not for later kernels."""

    def __init__(self, tensor: torch.Tensor, event: torch.cuda.Event | None) -> None:
        self._tensor = tensor
        self._event = event

    def result(self) -> torch.Tensor:
        """The data on the host. Call it once everything else of this turn is launched."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor


def to_host_async(tensor: torch.Tensor) -> HostCopy:
    """Begin to copy `tensor` (device, any shape) to pinned host memory; on the CPU it is its own
    result."""
    if tensor.device.type != "cuda":
        return HostCopy(tensor, None)
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return HostCopy(host, event)
