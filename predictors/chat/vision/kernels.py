"""Triton kernel that prepares full attention over a picture, shared by the models' vision towers.

Imported on CUDA only, and by tests in Triton's interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

OUT_OF_SIGHT = tl.constexpr(-30000.0)  # of a key's extra feature: its share underflows to zero


@triton.jit
def rotated(heads, columns, mask, cos, sin, DIM: tl.constexpr):
    """Some columns of heads after rotation, float32; `heads` points at each row's column 0. Column
    i is rotated with i + DIM / 2."""
    HALF: tl.constexpr = DIM // 2
    is_first = columns < HALF
    partner = tl.where(is_first, columns + HALF, columns - HALF)
    own = tl.load(heads + columns[None, :], mask, other=0.0).to(tl.float32)
    other = tl.load(heads + partner[None, :], mask, other=0.0).to(tl.float32)
    return own * cos + tl.where(is_first[None, :], -other, other) * sin


@triton.jit
def heads_kernel(
    qkv,
    cos,
    sin,
    count,
    out,
    FACTOR: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """qkv (rows, 3, HEADS, DIM) to out (rows, 3, HEADS, PADDED) for attention without a mask: q and
    k rotated, q times FACTOR, and one more feature which hides rows from `count` (1,) on.

    It is 1 in queries; in keys it is 0, or far below it in rows to hide. Their other features are
    zeros, whatever they held.
    """
    row = tl.program_id(0).to(tl.int64)
    real = row < tl.load(count)
    heads = tl.arange(0, BLOCK_HEADS)[:, None]
    columns = tl.arange(0, BLOCK)
    is_head = (heads < HEADS) & (columns < PADDED)[None, :]
    mask = (heads < HEADS) & (columns < DIM)[None, :] & real
    c = tl.load(cos + row * DIM + columns, columns < DIM, other=0.0)[None, :]
    s = tl.load(sin + row * DIM + columns, columns < DIM, other=0.0)[None, :]
    q = qkv + row * (3 * HEADS * DIM) + heads * DIM
    k = q + HEADS * DIM
    v = k + HEADS * DIM
    there = out + row * (3 * HEADS * PADDED) + heads * PADDED + columns[None, :]
    dtype = out.dtype.element_ty
    is_extra = (columns == DIM)[None, :]
    queries = tl.where(is_extra, 1.0, rotated(q, columns, mask, c, s, DIM) * FACTOR)
    tl.store(there, queries.to(dtype), is_head)
    hidden = tl.where(real, 0.0, OUT_OF_SIGHT)
    keys = tl.where(is_extra, hidden, rotated(k, columns, mask, c, s, DIM))
    tl.store(there + HEADS * PADDED, keys.to(dtype), is_head)
    values = tl.load(v + columns[None, :], mask, other=0.0)
    tl.store(there + 2 * HEADS * PADDED, values.to(dtype), is_head)
