"""Triton kernel between two matmuls of the vision tower: add and layer-normalise.

Imported on CUDA only, and by tests in Triton's interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_norm_kernel(
    stream,
    update,
    weight,
    bias,
    out,
    EPS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """stream += update; out = layer_norm(stream) * weight + bias, moments in float32."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < DIM
    place = row * DIM + columns
    value = tl.load(stream + place, mask, other=0.0).to(tl.float32)
    value += tl.load(update + place, mask, other=0.0).to(tl.float32)
    kept = value.to(stream.dtype.element_ty)
    tl.store(stream + place, kept, mask)
    value = kept.to(tl.float32)
    centred = tl.where(mask, value - tl.sum(value, axis=0) / DIM, 0.0)
    root = tl.rsqrt(tl.sum(centred * centred, axis=0) / DIM + EPS)
    scale = tl.load(weight + columns, mask, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, mask, other=0.0).to(tl.float32)
    tl.store(out + place, (centred * root * scale + shift).to(out.dtype.element_ty), mask)
