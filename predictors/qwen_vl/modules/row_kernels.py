"""Triton kernels that pass once over a prompt's rows between two matmuls. Knows pointers, sizes and
strides only.

One program takes one row, so a row's result depends on that row alone. Imported on CUDA only, and
by tests in Triton's interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def norm_kernel(x, weight, out, EPS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """out = x / rms(x) * weight, the root in float32."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < DIM
    value = tl.load(x + row * DIM + columns, mask, other=0.0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, axis=0) / DIM + EPS)
    value *= tl.load(weight + columns, mask, other=0.0).to(tl.float32)
    tl.store(out + row * DIM + columns, value.to(out.dtype.element_ty), mask)


@triton.jit
def gate_kernel(wide, out, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """out (rows, DIM) = silu(first half of wide) * second half."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < DIM
    gate = tl.load(wide + row * 2 * DIM + columns, mask, other=0.0).to(tl.float32)
    up = tl.load(wide + row * 2 * DIM + DIM + columns, mask, other=0.0).to(tl.float32)
    result = gate * tl.sigmoid(gate) * up
    tl.store(out + row * DIM + columns, result.to(out.dtype.element_ty), mask)
