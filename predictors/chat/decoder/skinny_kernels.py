"""Triton kernel for a linear over one row, of which a decode step of one sequence consists.

Such a linear costs as much as reading its weight once, so norm, bias, residual and SiLU gate are
computed while the weight is read: once, in memory order, with float32 sums in a fixed order. From
two rows on cuBLAS is as fast. Imported on CUDA only, and by tests in Triton's interpreter.
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
def _tile(here, start: tl.constexpr, lanes, inside, K: tl.constexpr):
    return tl.load(here + start, inside & (start + lanes < K)[None, :], other=0.0)


@triton.jit
def row_kernel(
    x,
    weight,
    scales,
    bias,
    norm,
    residual,
    out,
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
    """out (N,) = weight (N, K) times x (K,), with what the flags say around it.

    norm: x is RMS-normed first; the root is applied to the sum, so that one pass over x is enough.
    gated: weight is (2 N, K), and out = silu(first half) * second half. scales (N,) are the rows'
    of an fp8 weight.
    """
    _begin(IS_CHAINED)
    outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    lanes, known = tl.arange(0, BLOCK_K), outputs < N
    inside = known[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    other, squares = total, tl.zeros((BLOCK_K,), tl.float32)
    here = weight + outputs.to(tl.int64)[:, None] * K + lanes[None, :]
    # the first tile is on its way before the wait: no kernel writes a weight
    tile = _tile(here, 0, lanes, inside, K)
    tile2 = _tile(here + N * K, 0, lanes, inside, K) if IS_GATED else tile
    _until_written(IS_CHAINED)
    for start in tl.static_range(0, K, BLOCK_K):
        columns = start + lanes
        value = tl.load(x + columns, columns < K, other=0.0).to(tl.float32)
        if HAS_NORM:
            squares += value * value
            value *= tl.load(norm + columns, columns < K, other=0.0).to(tl.float32)
        now, now2 = tile, tile2
        if start + BLOCK_K < K:
            tile = _tile(here, start + BLOCK_K, lanes, inside, K)
            if IS_GATED:
                tile2 = _tile(here + N * K, start + BLOCK_K, lanes, inside, K)
        total += now.to(tl.float32) * value[None, :]
        if IS_GATED:
            other += now2.to(tl.float32) * value[None, :]
    result, up = tl.sum(total, axis=1), tl.sum(other, axis=1)
    if HAS_SCALES:
        result *= tl.load(scales + outputs, known, other=0.0)
        up *= tl.load(scales + outputs + (N if IS_GATED else 0), known, other=0.0)
    if HAS_NORM:
        root = tl.rsqrt(tl.sum(squares, axis=0) / K + EPS)
        result, up = result * root, up * root
    if HAS_BIAS:
        result += tl.load(bias + outputs, known, other=0.0).to(tl.float32)
    if IS_GATED:
        result *= tl.sigmoid(result) * up
    if HAS_RESIDUAL:
        result += tl.load(residual + outputs, known, other=0.0).to(tl.float32)
    tl.store(out + outputs, result.to(out.dtype.element_ty), known)
