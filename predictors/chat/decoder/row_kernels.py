"""Triton kernels that pass once over rows between two matmuls: norm and gate, each with an optional
quantisation to fp8.

One program takes one row, so a row's result depends on that row alone. Imported on CUDA only, and
by tests in Triton's interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _store(value, out, scales, row, columns, mask, DIM: tl.constexpr, IS_FP8: tl.constexpr):
    """A row as it is, or as e4m3 with its scale: see compute/kernels/fp8.py `quantize_rows`."""
    there = out + row * DIM + columns
    if IS_FP8:
        largest = tl.maximum(tl.max(tl.abs(value), axis=0), 1e-12)
        tl.store(scales + row, largest / 448.0)
        tl.store(there, (value * (448.0 / largest)).to(tl.float8e4nv), mask)
    else:
        tl.store(there, value.to(out.dtype.element_ty), mask)


@triton.jit
def norm_kernel(
    x,
    weight,
    out,
    scales,
    EPS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_NORM: tl.constexpr,
    IS_FP8: tl.constexpr,
):
    """out = x / rms(x) * weight, the root in float32; without the norm, x itself."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < DIM
    value = tl.load(x + row * DIM + columns, mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        value *= tl.rsqrt(tl.sum(value * value, axis=0) / DIM + EPS)
        value *= tl.load(weight + columns, mask, other=0.0).to(tl.float32)
    _store(value, out, scales, row, columns, mask, DIM, IS_FP8)


@triton.jit
def gate_kernel(wide, out, scales, DIM: tl.constexpr, BLOCK: tl.constexpr, IS_FP8: tl.constexpr):
    """out (rows, DIM) = silu(first half of wide) * second half. In fp8 BLOCK covers the row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < DIM
    gate = tl.load(wide + row * 2 * DIM + columns, mask, other=0.0).to(tl.float32)
    up = tl.load(wide + row * 2 * DIM + DIM + columns, mask, other=0.0).to(tl.float32)
    _store(gate * tl.sigmoid(gate) * up, out, scales, row, columns, mask, DIM, IS_FP8)
