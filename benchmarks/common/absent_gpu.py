"""Lets Triton compile kernels for a Hopper card on a machine without one: it brings its own
assembler, and only a launch needs the device.
"""

from __future__ import annotations

import triton
from triton.backends.compiler import GPUTarget


class AbsentGpu:
    """The methods of a driver that Triton calls before a launch."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def compile_for_hopper() -> None:
    """From now on kernels of this process are compiled for sm_90, and none can be launched."""
    triton.runtime.driver.set_active(AbsentGpu())
