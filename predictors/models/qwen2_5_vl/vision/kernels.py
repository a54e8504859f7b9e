"""Triton kernels that run between two matmuls of the vision tower.

A window's patches are contiguous, so one program holds a whole window of some heads in registers,
without gather or mask. Rows that are no patches may hold anything, NaN included: no real row reads
them. Imported on CUDA only, and by tests in Triton's interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

from predictors.chat.vision.kernels import rotated

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def add_norm_kernel(
    stream,
    update,
    weight,
    out,
    EPS: tl.constexpr,
    HAS_UPDATE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """stream += update, if there is one; out = stream / rms(stream) * weight, root in float32."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < DIM
    place = row * DIM + columns
    value = tl.load(stream + place, mask, other=0.0).to(tl.float32)
    if HAS_UPDATE:
        value += tl.load(update + place, mask, other=0.0).to(tl.float32)
        kept = value.to(stream.dtype.element_ty)
        tl.store(stream + place, kept, mask)
        value = kept.to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, axis=0) / DIM + EPS)
    value *= tl.load(weight + columns, mask, other=0.0).to(tl.float32)
    tl.store(out + place, value.to(out.dtype.element_ty), mask)


@triton.jit
def _angles(cos, sin, places, mask):
    return tl.load(cos + places, mask, other=0.0), tl.load(sin + places, mask, other=0.0)


@triton.jit
def _mix(share, mass, values, there, mask):
    found = tl.load(values, mask, other=0.0)
    mixed = tl.dot(share.to(found.dtype), found, input_precision="ieee") / mass
    tl.store(there, mixed.to(found.dtype), mask)


@triton.jit
def _blank(
    out,
    rows,
    mask,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    EACH: tl.constexpr,
):
    columns = tl.arange(0, BLOCK)[None, :]
    for i in range(EACH):
        there = out + rows * (HEADS * DIM) + (tl.program_id(1) * EACH + i) * DIM
        nothing = tl.zeros((rows.shape[0], BLOCK), out.dtype.element_ty)
        tl.store(there + columns, nothing, mask & (columns < DIM))


@triton.jit
def window_attention_kernel(
    qkv,
    cos,
    sin,
    starts,
    lengths,
    out,
    SCALE: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    EACH: tl.constexpr,
):
    """Attention inside windows: rows `starts` .. + `lengths` (windows,) of qkv (rows, 3, HEADS,
    DIM) to out (rows, HEADS, DIM); cos, sin (rows, DIM) float32 turn q and k.

    A program takes EACH heads of a window of at most ROWS rows. DIM is cut into LOW columns and at
    most HIGH more (0: none), so that 80 costs 64 + 16 and not 128. A window of negative length are
    rows without patches, which become zeros.
    """
    window = tl.program_id(0)
    length = tl.load(lengths + window)
    lanes = tl.arange(0, ROWS)
    rows = (tl.load(starts + window) + lanes).to(tl.int64)[:, None]
    if length < 0:
        _blank(out, rows, (lanes < -length)[:, None], HEADS, DIM, LOW + LOW, EACH)
    if length > 0:
        real = (lanes < length)[:, None]
        low = tl.arange(0, LOW)
        low_mask = real & (low < DIM)[None, :]
        low_cos, low_sin = _angles(cos, sin, rows * DIM + low[None, :], low_mask)
        if HIGH > 0:
            high = LOW + tl.arange(0, HIGH)
            high_mask = real & (high < DIM)[None, :]
            high_cos, high_sin = _angles(cos, sin, rows * DIM + high[None, :], high_mask)
        for i in range(EACH):
            head = tl.program_id(1) * EACH + i
            q = qkv + rows * (3 * HEADS * DIM) + head * DIM
            k, v = q + HEADS * DIM, q + 2 * HEADS * DIM
            there = out + rows * (HEADS * DIM) + head * DIM
            dtype = qkv.dtype.element_ty
            queries = rotated(q, low, low_mask, low_cos, low_sin, DIM).to(dtype)
            keys = rotated(k, low, low_mask, low_cos, low_sin, DIM).to(dtype)
            scores = tl.dot(queries, keys.T, input_precision="ieee")
            if HIGH > 0:
                queries = rotated(q, high, high_mask, high_cos, high_sin, DIM).to(dtype)
                keys = rotated(k, high, high_mask, high_cos, high_sin, DIM).to(dtype)
                scores = tl.dot(queries, keys.T, scores, input_precision="ieee")
            scores = tl.where((lanes < length)[None, :], scores * (SCALE * LOG2E), -float("inf"))
            share = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
            mass = tl.sum(share, axis=1)[:, None]
            _mix(share, mass, v + low[None, :], there + low[None, :], low_mask)
            if HIGH > 0:
                _mix(share, mass, v + high[None, :], there + high[None, :], high_mask)
