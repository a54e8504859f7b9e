"""Triton kernel for a linear with an fp8 weight over 2 to 64 rows of bfloat16, as a decode step has
them: the weight is widened while it is read, and the rows are not quantised.

The product is weight times rows transposed, so that the 64 rows of the matrix units are features
and few tokens leave none of them idle. Imported on CUDA only, and by tests in Triton's interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

from predictors.chat.decoder.attention_kernels import _is_last_arrival
from predictors.chat.decoder.skinny_kernels import _begin, _until_written


@triton.jit
def _sum_of_parts(
    partial, tile, cells, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr
):
    """The parts of one tile (BLOCK_N, ROWS), added in their order."""
    total = tl.zeros((BLOCK_N, ROWS), tl.float32)
    for part in tl.static_range(SPLITS):
        theirs = partial + (tile * SPLITS + part) * (BLOCK_N * ROWS)
        total += tl.load(theirs + cells, cache_modifier=".cg")  # other programs wrote them just now
    return total


@triton.jit
def few_rows_kernel(
    x,
    weight,
    scales,
    bias,
    residual,
    out,
    partial,
    arrivals,
    rows,
    K: tl.constexpr,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    IS_CHAINED: tl.constexpr,
):
    """out (rows, N) = scales (N,) * (x (rows, K) times weight (N, K)) + bias (N,) + residual.

    `weight` is a tensor descriptor of (BLOCK_N, BLOCK_K); ROWS is a power of two, at least `rows`;
    K is a multiple of BLOCK_K. The sum over K is cut in SPLITS parts; the program that finishes
    last adds them. Scratch are partial (tiles, SPLITS, BLOCK_N, ROWS) float32, and arrivals
    (tiles,) int32, zero before and after.
    """
    _begin(IS_CHAINED)
    tile, split = tl.program_id(0), tl.program_id(1)
    row = tl.arange(0, ROWS)
    per: tl.constexpr = (K // BLOCK_K + SPLITS - 1) // SPLITS * BLOCK_K
    first = split * per
    end = tl.minimum(first + per, K)
    # rows beyond the last are copies of it: nothing of them is stored
    here = x + tl.minimum(row, rows - 1)[:, None] * K + tl.arange(0, BLOCK_K)[None, :]
    _until_written(IS_CHAINED)
    total = tl.zeros((BLOCK_N, ROWS), tl.float32)
    for start in tl.range(first, end, BLOCK_K, num_stages=STAGES):
        values = tl.load(here + start)
        wide = weight.load([tile * BLOCK_N, start]).to(values.dtype)
        total = tl.dot(wide, values.T, total, input_precision="ieee")
    is_last = True
    if SPLITS > 1:
        cells = tl.arange(0, BLOCK_N)[:, None] * ROWS + row[None, :]
        tl.store(partial + (tile * SPLITS + split) * (BLOCK_N * ROWS) + cells, total)
        is_last = _is_last_arrival(arrivals + tile, SPLITS)
    if is_last:
        if SPLITS > 1:
            total = _sum_of_parts(partial, tile, cells, ROWS, BLOCK_N, SPLITS)
            tl.store(arrivals + tile, 0)
        features = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        known = features < N
        total *= tl.load(scales + features, known, other=0.0)[:, None]
        if HAS_BIAS:
            total += tl.load(bias + features, known, other=0.0).to(tl.float32)[:, None]
        result = total.T
        there = row.to(tl.int64)[:, None] * N + features[None, :]
        inside = (row < rows)[:, None] & known[None, :]
        if HAS_RESIDUAL:
            result += tl.load(residual + there, inside, other=0.0).to(tl.float32)
        tl.store(out + there, result.to(out.dtype.element_ty), inside)
