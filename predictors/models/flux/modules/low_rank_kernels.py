"""Triton kernels that add low-rank adapters to a linear's output: two per linear, for both streams
and all rows.

    shrink   inner = x @ down[rank rows of the row]^T, in float32, in parts of the sum
    expand   out += (inner * scales) @ up[the same], then GELU where one follows

Rank rows are gathered by index inside of the kernels. Neither does more than look at the index of a
row whose adapters leave the linear as it is. Imported on CUDA only, and by tests in Triton's
interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

_SIZES = ["num_tokens", "num_text", "text_tiles", "to_text", "used_to_text"]


@triton.jit
def _tokens_of(tile, num_tokens, num_text, text_tiles, BLOCK: tl.constexpr):
    """Tokens of a tile and the mask of those that exist: no tile has tokens of both streams."""
    is_text = tile < text_tiles
    first = tl.where(is_text, tile * BLOCK, num_text + (tile - text_tiles) * BLOCK)
    tokens = first + tl.arange(0, BLOCK)
    return tokens, tokens < tl.where(is_text, num_text, num_tokens)


@triton.jit
def _is_changed(used, index, N: tl.constexpr):
    """1 if any of these rank rows changes the linear, else 0."""
    return tl.max(tl.load(used + tl.load(index + tl.arange(0, N))).to(tl.int32), axis=0)


@triton.jit(do_not_specialize=[*_SIZES, "first_tokens", "second_tokens"])
def shrink_kernel(
    first,
    second,
    down,
    used,
    index,
    inner,
    num_tokens,
    num_text,
    text_tiles,
    to_text,
    used_to_text,
    first_tokens,
    second_tokens,
    N: tl.constexpr,
    PARTS: tl.constexpr,
    TABLE_ROWS: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """inner (splits, rows, tokens, PARTS, N) of x, the features of `first` and then of `second`.

    A program has a tile of tokens, a row, and CHUNK features of a part. down (PARTS, TABLE_ROWS,
    FIRST + SECOND) and used (TABLE_ROWS,) are the picture's; the text's are `to_text`, a multiple
    of 16, and `used_to_text` elements further on. index (rows, N). A row of `first` begins
    `first_tokens` tokens behind the one before.
    """
    tile, row, place = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    block = place % (N // BLOCK_N)
    part = place // (N // BLOCK_N) % PARTS
    split = place // (N // BLOCK_N) // PARTS
    is_text = (tile < text_tiles).to(tl.int64)
    is_changed = _is_changed(used + is_text * used_to_text, index + row * N, N)
    tokens, exists = _tokens_of(tile, num_tokens, num_text, text_tiles, BLOCK_M)
    exists = exists & (is_changed > 0)
    ranks = block * BLOCK_N + tl.arange(0, BLOCK_N)
    rank_rows = part * TABLE_ROWS + tl.load(index + row * N + ranks)
    table = down + tl.multiple_of(is_text * to_text, 16) + rank_rows[None, :] * (FIRST + SECOND)
    of_first = row * first_tokens + tokens[:, None]
    of_second = row * second_tokens + tokens[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, is_changed * CHUNK, BLOCK_K):
        within = k + tl.arange(0, BLOCK_K)
        features = split * CHUNK + within
        has = (within < CHUNK)[None, :] & exists[:, None]
        here = first + of_first * FIRST + features[None, :]
        x = tl.load(here, has & (features < FIRST)[None, :], other=0.0).to(down.dtype.element_ty)
        if SECOND > 0:
            there = second + of_second * SECOND + (features[None, :] - FIRST)
            more = tl.load(there, has & (features >= FIRST)[None, :], other=0.0)
            x += more.to(down.dtype.element_ty)
        values = tl.load(table + features[:, None], (within < CHUNK)[:, None], other=0.0)
        total = tl.dot(x, values, total, input_precision="ieee")
    sums = (split * tl.num_programs(1) + row) * num_tokens + tokens
    target = inner + (sums[:, None] * PARTS + part) * N + ranks[None, :]
    tl.store(target, total, exists[:, None])


@triton.jit(do_not_specialize=[*_SIZES, "scales_stride"])
def expand_kernel(
    out,
    inner,
    up,
    used,
    index,
    scales,
    token_scales,
    num_tokens,
    num_text,
    text_tiles,
    to_text,
    used_to_text,
    scales_stride,
    N: tl.constexpr,
    PARTS: tl.constexpr,
    FEATURES: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    HAS_TOKEN_SCALES: tl.constexpr,
    HAS_GELU: tl.constexpr,
):
    """out (rows, tokens, PARTS * FEATURES) in place. up (table rows, PARTS * FEATURES) and used
    with distances as in `shrink_kernel`; scales (rows, N); token_scales (rows, tokens)."""
    tile, row, place = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    blocks = tl.cdiv(FEATURES, BLOCK_O)
    part = place // blocks
    columns = place % blocks * BLOCK_O + tl.arange(0, BLOCK_O)
    is_text = (tile < text_tiles).to(tl.int64)
    is_changed = _is_changed(used + is_text * used_to_text, index + row * N, N)
    tokens, exists = _tokens_of(tile, num_tokens, num_text, text_tiles, BLOCK_M)
    is_feature = (columns < FEATURES)[None, :]
    columns = part * FEATURES + columns
    rows = tl.num_programs(1)
    total = tl.zeros((BLOCK_M, BLOCK_O), dtype=tl.float32)
    for j in range(0, is_changed * N, BLOCK_N):
        ranks = j + tl.arange(0, BLOCK_N)
        sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for split in range(SPLITS):
            of_split = (split * rows + row) * num_tokens + tokens
            of_part = inner + (of_split[:, None] * PARTS + part) * N + ranks[None, :]
            sums += tl.load(of_part, exists[:, None], other=0.0)
        sums *= tl.load(scales + row * N + ranks)[None, :]
        if HAS_TOKEN_SCALES:
            sums *= tl.load(token_scales + row * scales_stride + tokens, exists, other=0.0)[:, None]
        rank_rows = tl.load(index + row * N + ranks)[:, None]
        table = up + tl.multiple_of(is_text * to_text, 16) + rank_rows * (PARTS * FEATURES)
        table += columns[None, :]
        values = tl.load(table, is_feature, other=0.0)
        total = tl.dot(sums.to(up.dtype.element_ty), values, total, input_precision="ieee")
    here = out + (row * num_tokens + tokens)[:, None] * (PARTS * FEATURES) + columns[None, :]
    has = exists[:, None] & is_feature
    if not HAS_GELU:
        has = has & (is_changed > 0)
    value = tl.load(here, has, other=0.0).to(tl.float32) + total
    if HAS_GELU:
        # x/2 (1 + tanh u) = x sigmoid(2 u), as in `gelu_rows_kernel`
        doubled = 1.5957691216057308 * (value + 0.044715 * value * value * value)
        value = value / (1.0 + tl.exp(-tl.maximum(doubled, -80.0)))
    tl.store(here, value.to(out.dtype.element_ty), has)
