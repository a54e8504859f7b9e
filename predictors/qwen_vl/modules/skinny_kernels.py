"""Triton kernels for a linear over very few rows: what a decode step of a few sequences is made of.
Knows pointers, sizes and strides only.

Such a linear costs what reading its weight once costs, so all that stands beside it (norm, bias,
residual, SiLU gate) happens while the weight streams by. Every weight is read once, in the order it
lies in memory; sums are float32 in a fixed order, so a row's result depends on that row alone.
Imported on CUDA only, and by tests in Triton's interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _begin(IS_CHAINED: tl.constexpr):
    """Let the next kernel of the stream come up while this one runs (programmatic launch)."""
    if IS_CHAINED:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def _until_written(IS_CHAINED: tl.constexpr):
    """Wait until every kernel before this one has written what it writes."""
    if IS_CHAINED:
        tl.extra.cuda.gdc_wait()


@triton.jit
def skinny_kernel(
    x,
    weight,
    scales,
    bias,
    norm,
    residual,
    out,
    num_rows,
    ROWS: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    IS_GATED: tl.constexpr,
    IS_CHAINED: tl.constexpr,
):
    """out (rows, N) = x (rows, K) times weight (N, K), with what the flags say around it, for
    `num_rows` <= ROWS rows.

    norm: x is RMS-normed first; the root is applied to the sum, so that one pass over x is enough.
    gated: weight is (2 N, K), and out = silu(first half) * second half. scales (N,) are the rows'
    of an fp8 weight.
    """
    _begin(IS_CHAINED)
    outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.arange(0, ROWS)
    lanes = tl.arange(0, BLOCK_K)
    inside = (outputs < N)[:, None]
    total = tl.zeros((ROWS, BLOCK_N, BLOCK_K), tl.float32)
    other = total
    squares = tl.zeros((ROWS, BLOCK_K), tl.float32)
    here = weight + outputs.to(tl.int64)[:, None] * K + lanes[None, :]
    # the first tile is on its way before the wait: a weight is nobody's output
    tile = tl.load(here, inside & (lanes < K)[None, :], other=0.0)
    tile2 = tile
    if IS_GATED:
        tile2 = tl.load(here + N * K, inside & (lanes < K)[None, :], other=0.0)
    _until_written(IS_CHAINED)
    for start in tl.static_range(0, K, BLOCK_K):
        columns = start + lanes
        known = (rows < num_rows)[:, None] & (columns < K)[None, :]
        value = tl.load(x + rows[:, None] * K + columns[None, :], known, other=0.0).to(tl.float32)
        if HAS_NORM:
            squares += value * value
            value *= tl.load(norm + columns, columns < K, other=0.0).to(tl.float32)[None, :]
        now, now2 = tile, tile2
        if start + BLOCK_K < K:
            there = inside & (columns + BLOCK_K < K)[None, :]
            tile = tl.load(here + start + BLOCK_K, there, other=0.0)
            if IS_GATED:
                tile2 = tl.load(here + N * K + start + BLOCK_K, there, other=0.0)
        total += now.to(tl.float32)[None, :, :] * value[:, None, :]
        if IS_GATED:
            other += now2.to(tl.float32)[None, :, :] * value[:, None, :]
    result = tl.sum(total, axis=2)
    gate = result
    if IS_GATED:
        result = tl.sum(other, axis=2)
    if HAS_SCALES:
        by = tl.load(scales + outputs, outputs < N, other=0.0)[None, :]
        if IS_GATED:
            gate *= by
            by = tl.load(scales + N + outputs, outputs < N, other=0.0)[None, :]
        result *= by
    if HAS_NORM:
        root = tl.rsqrt(tl.sum(squares, axis=1) / K + EPS)[:, None]
        result *= root
        gate *= root
    if HAS_BIAS:
        result += tl.load(bias + outputs, outputs < N, other=0.0).to(tl.float32)[None, :]
    if IS_GATED:
        result *= gate * tl.sigmoid(gate)
    places = rows[:, None] * N + outputs[None, :]
    real = (rows < num_rows)[:, None] & (outputs < N)[None, :]
    if HAS_RESIDUAL:
        result += tl.load(residual + places, real, other=0.0).to(tl.float32)
    tl.store(out + places, result.to(out.dtype.element_ty), real)
