"""Compiles a real Triton kernel for a Hopper GPU on any machine. It replaces Triton's driver, so it
runs in a process of its own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from benchmarks.common.absent_gpu import compile_for_hopper


@triton.jit
def add_one(values, count, BLOCK: tl.constexpr):  # noqa: N803
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(values + at, tl.load(values + at, mask=at < count) + 1, mask=at < count)


def compile_for(block: int) -> None:
    compile_for_hopper()
    # Triton 3.9 warns where the option is left to its default, which 3.10 changes
    add_one.warmup(torch.float32, 100, BLOCK=block, enable_fp_fusion=True, grid=(1,))
