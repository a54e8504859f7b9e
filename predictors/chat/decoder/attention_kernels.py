"""Triton kernels for attention over KV pages: one for a decode step, two for a prompt pass.

Lengths, slots and page tables are read on the device, so one captured form serves any traffic. All
query heads of one key head share a program, so that eight heads read their keys once. A sequence
reads its own pages only, with a fixed order of summation for its length.
"""

from __future__ import annotations

import triton
import triton.language as tl

from predictors.chat.decoder.skinny_kernels import _begin, _until_written

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _rotated(low, high, cos, sin):
    """The two halves of a head after rotation, float32."""
    low, high = low.to(tl.float32), high.to(tl.float32)
    return low * cos - high * sin, high * cos + low * sin


@triton.jit
def _normed(low, high, weight, half, EPS: tl.constexpr, HALF: tl.constexpr):
    """Halves of heads (heads, HALF) over their root mean square, times weight (2 HALF,); fp32."""
    low, high = low.to(tl.float32), high.to(tl.float32)
    squares = tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)
    root = tl.rsqrt(squares / (2 * HALF) + EPS)[:, None]
    low *= root * tl.load(weight + half).to(tl.float32)[None, :]
    high *= root * tl.load(weight + HALF + half).to(tl.float32)[None, :]
    return low, high


@triton.jit
def _rows_of_pages(tables, positions, inside, PAGE: tl.constexpr):
    """Where a sequence's tokens lie, counted in tokens from the cache's start."""
    page = tl.load(tables + positions // PAGE, inside, other=0)
    return page * PAGE + positions % PAGE


@triton.jit
def _new_token(
    qkv,
    cos,
    sin,
    q_norm,
    k_norm,
    angle,
    group,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    EPS: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """A row's queries of one group, two halves (16, DIM / 2), and its key, two halves (DIM / 2,),
    normed and rotated; and its value (DIM,)."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    HALF: tl.constexpr = DIM // 2
    half = tl.arange(0, HALF)
    heads = tl.arange(0, 16)
    c, s = tl.load(cos + angle * DIM + half), tl.load(sin + angle * DIM + half)
    q = qkv + (group * GROUP + heads)[:, None] * DIM + half[None, :]
    real = (heads < GROUP)[:, None]
    q_low, q_high = tl.load(q, real, other=0.0), tl.load(q + HALF, real, other=0.0)
    dtype = q_low.dtype
    k = qkv + (HEADS + group) * DIM
    low, high = tl.load(k + half), tl.load(k + HALF + half)
    if HAS_NORM:
        q_low, q_high = _normed(q_low, q_high, q_norm, half, EPS, HALF)
        low, high = low.to(tl.float32), high.to(tl.float32)
        squares = tl.sum(low * low, axis=0) + tl.sum(high * high, axis=0)
        root = tl.rsqrt(squares / DIM + EPS)
        low *= root * tl.load(k_norm + half).to(tl.float32)
        high *= root * tl.load(k_norm + HALF + half).to(tl.float32)
    q_low, q_high = _rotated(q_low, q_high, c[None, :], s[None, :])
    low, high = _rotated(low, high, c, s)
    value = tl.load(qkv + (HEADS + KV_HEADS + group) * DIM + tl.arange(0, DIM))
    return q_low.to(dtype), q_high.to(dtype), low.to(dtype), high.to(dtype), value


@triton.jit
def _seen_first(q_low, q_high, low, high, value, is_seen, SCALE: tl.constexpr, DIM: tl.constexpr):
    """Attention to the new token alone if it `is_seen`, else to nothing: largest score and sum
    (16,), weighted values (16, DIM)."""
    most = tl.full((16,), -float("inf"), tl.float32)
    mass = tl.zeros((16,), tl.float32)
    mixed = tl.zeros((16, DIM), tl.float32)
    if is_seen:
        most = tl.sum(q_low.to(tl.float32) * low.to(tl.float32)[None, :], axis=1)
        most += tl.sum(q_high.to(tl.float32) * high.to(tl.float32)[None, :], axis=1)
        most *= SCALE * LOG2E
        mass += 1.0
        mixed += value.to(tl.float32)[None, :]
    return most, mass, mixed


@triton.jit
def _over_keys(
    q_low,
    q_high,
    new_low,
    new_high,
    new_value,
    is_new_seen,
    cache,
    table,
    group,
    first,
    end,
    to_values,
    SCALE: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Attention to the tokens first .. end of a sequence's pages, and to the new one if it
    `is_new_seen`: largest score and sum (16,), weighted values (16, DIM)."""
    HALF: tl.constexpr = DIM // 2
    half, dims = tl.arange(0, HALF), tl.arange(0, DIM)
    most, mass, mixed = _seen_first(
        q_low, q_high, new_low, new_high, new_value, is_new_seen, SCALE, DIM
    )
    for start in tl.range(first, end, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        there = tokens < end
        places = _rows_of_pages(table, tokens, there, PAGE) * KV_HEADS + group
        keys = cache + places[:, None] * DIM + half[None, :]
        low = tl.load(keys, there[:, None], other=0.0)
        high = tl.load(keys + HALF, there[:, None], other=0.0)
        values = cache + to_values + places[:, None] * DIM + dims[None, :]
        value = tl.load(values, there[:, None], other=0.0)
        scores = tl.dot(q_low, low.T, input_precision="ieee")
        scores = tl.dot(q_high, high.T, scores, input_precision="ieee") * (SCALE * LOG2E)
        scores = tl.where(there[None, :], scores, -float("inf"))
        higher = tl.maximum(most, tl.max(scores, axis=1))
        shrink, share = tl.exp2(most - higher), tl.exp2(scores - higher[:, None])
        mass = mass * shrink + tl.sum(share, axis=1)
        mixed = mixed * shrink[:, None]
        mixed = tl.dot(share.to(q_low.dtype), value, mixed, input_precision="ieee")
        most = higher
    return most, mass, mixed


@triton.jit
def _joined(partial, weights, cell, parts, DIM: tl.constexpr):
    """The parts of one row's group as one: weighted values (16, DIM) over their sum."""
    heads, dims = tl.arange(0, 16), tl.arange(0, DIM)
    most = tl.full((16,), -float("inf"), tl.float32)
    mass = tl.zeros((16,), tl.float32)
    mixed = tl.zeros((16, DIM), tl.float32)
    for part in tl.range(0, parts):
        theirs = weights + (cell + part) * 32 + heads
        peak = tl.load(theirs, cache_modifier=".cg")  # another program wrote it just now
        higher = tl.maximum(most, peak)
        shrink, grow = tl.exp2(most - higher), tl.exp2(peak - higher)
        mass = mass * shrink + tl.load(theirs + 16, cache_modifier=".cg") * grow
        there = partial + (cell + part).to(tl.int64) * 16 * DIM
        there += heads[:, None] * DIM + dims[None, :]
        found = tl.load(there, cache_modifier=".cg")
        mixed = mixed * shrink[:, None] + found * grow[:, None]
        most = higher
    return mixed / mass[:, None]


@triton.jit
def _store_token(cache, place, low, high, value, to_values, DIM: tl.constexpr):
    half, dims = tl.arange(0, DIM // 2), tl.arange(0, DIM)
    tl.store(cache + place * DIM + half, low)
    tl.store(cache + place * DIM + DIM // 2 + half, high)
    tl.store(cache + to_values + place * DIM + dims, value)


@triton.jit
def _store_part(partial, weights, cell, most, mass, mixed, DIM: tl.constexpr):
    heads, dims = tl.arange(0, 16), tl.arange(0, DIM)
    there = partial + cell.to(tl.int64) * 16 * DIM + heads[:, None] * DIM + dims[None, :]
    tl.store(there, mixed)
    tl.store(weights + cell * 32 + heads, most)
    tl.store(weights + cell * 32 + 16 + heads, mass)


@triton.jit
def _is_last_arrival(arrivals, parts):
    """Count this program among those that have written their part; true if it is the last."""
    tl.debug_barrier()  # all of this program has written before it says so
    arrived = tl.atomic_add(arrivals, 1, sem="acq_rel")
    tl.debug_barrier()
    return arrived == parts - 1


@triton.jit
def _store_heads(
    out, result, row, group, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr
):
    """Store a row's result (16, DIM) of one group's heads."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    heads, dims = tl.arange(0, 16), tl.arange(0, DIM)
    there = out + (row.to(tl.int64) * HEADS + group * GROUP + heads)[:, None] * DIM
    real = (heads < GROUP)[:, None]
    tl.store(there + dims[None, :], result.to(out.dtype.element_ty), real)


@triton.jit
def decode_attention_kernel(
    qkv,
    cos,
    sin,
    positions,
    cache,
    tables,
    slots,
    lengths,
    out,
    partial,
    weights,
    arrivals,
    q_norm,
    k_norm,
    to_values,
    table_stride,
    SCALE: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    LEAST: tl.constexpr,
    EPS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    IS_CHAINED: tl.constexpr,
):
    """One new token per row: norm and rotate q and k, store k and v, attend to all keys so far.

    qkv (rows, (HEADS + 2 KV_HEADS) DIM); cos, sin (any, DIM) float32 are looked up at positions
    (rows,); q_norm, k_norm (DIM,) are read if HAS_NORM; cache (2, tokens, KV_HEADS, DIM) with
    values `to_values` further; lengths (rows,): keys before the new one. A sequence's keys are cut
    in at most SPLITS parts of LEAST keys or more; the program that finishes last joins them.
    Scratch are partial (rows, KV_HEADS, SPLITS, 16, DIM) and weights (rows, KV_HEADS, SPLITS, 2,
    16) float32; arrivals (rows, KV_HEADS) int32 are zero before and after.
    """
    _begin(IS_CHAINED)
    row, group, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + row)
    per = tl.cdiv(tl.maximum(tl.cdiv(length + 1, SPLITS), LEAST), BLOCK) * BLOCK
    parts = tl.cdiv(length + 1, per)
    if split < parts:
        first = split * per
        table = tables + tl.load(slots + row) * table_stride
        angle = tl.load(positions + row)
        _until_written(IS_CHAINED)
        mine = qkv + row.to(tl.int64) * (HEADS + 2 * KV_HEADS) * DIM
        q_low, q_high, low, high, value = _new_token(
            mine, cos, sin, q_norm, k_norm, angle, group, HEADS, KV_HEADS, DIM, EPS, HAS_NORM
        )
        is_last = split == parts - 1  # the new token is its; no page is asked for that one
        if is_last:
            place = _rows_of_pages(table, length, True, PAGE) * KV_HEADS + group
            _store_token(cache, place, low, high, value, to_values, DIM)
        most, mass, mixed = _over_keys(
            q_low, q_high, low, high, value, is_last, cache, table, group, first,
            tl.minimum(first + per, length), to_values, SCALE, KV_HEADS, DIM, PAGE, BLOCK,
        )  # fmt: skip
        if parts == 1:
            _store_heads(out, mixed / mass[:, None], row, group, HEADS, KV_HEADS, DIM)
        else:
            cell = row * KV_HEADS + group
            _store_part(partial, weights, cell * SPLITS + split, most, mass, mixed, DIM)
            if _is_last_arrival(arrivals + cell, parts):
                result = _joined(partial, weights, cell * SPLITS, parts, DIM)
                _store_heads(out, result, row, group, HEADS, KV_HEADS, DIM)
                tl.store(arrivals + cell, 0)


@triton.jit
def rotate_kernel(
    qkv,
    cos,
    sin,
    cache,
    places,
    q_norm,
    k_norm,
    to_values,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    EPS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
):
    """A prompt's rows: norm and rotate q in place, k into its page, copy v into its page."""
    HALF: tl.constexpr = DIM // 2
    row = tl.program_id(0).to(tl.int64)
    half = tl.arange(0, HALF)
    heads = tl.arange(0, BLOCK_HEADS)
    c = tl.load(cos + row * DIM + half)[None, :]
    s = tl.load(sin + row * DIM + half)[None, :]
    mine = qkv + row * (HEADS + 2 * KV_HEADS) * DIM + heads[:, None] * DIM + half[None, :]
    turned = (heads < HEADS + KV_HEADS)[:, None]
    low, high = tl.load(mine, turned, other=0.0), tl.load(mine + HALF, turned, other=0.0)
    dtype = low.dtype
    is_query = (heads < HEADS)[:, None]
    if HAS_NORM:
        q_low, q_high = _normed(low, high, q_norm, half, EPS, HALF)
        k_low, k_high = _normed(low, high, k_norm, half, EPS, HALF)
        low, high = tl.where(is_query, q_low, k_low), tl.where(is_query, q_high, k_high)
    low, high = _rotated(low, high, c, s)
    tl.store(mine, low.to(dtype), is_query)
    tl.store(mine + HALF, high.to(dtype), is_query)
    place = cache + tl.load(places + row) * KV_HEADS * DIM
    there = place + (heads - HEADS)[:, None] * DIM + half[None, :]
    is_key = turned & (heads >= HEADS)[:, None]
    tl.store(there, low.to(dtype), is_key)
    tl.store(there + HALF, high.to(dtype), is_key)
    values = mine + KV_HEADS * DIM
    tl.store(there + to_values, tl.load(values, is_key, other=0.0), is_key)
    tl.store(there + to_values + HALF, tl.load(values + HALF, is_key, other=0.0), is_key)


@triton.jit
def prompt_attention_kernel(
    qkv,
    cache,
    tables,
    tile_slots,
    tile_starts,
    tile_rows,
    out,
    to_values,
    table_stride,
    SCALE: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
):
    """Rows of prompts over their pages, which hold these rows' own keys already; causal.

    Tile t is the rows t * TILE ...: `tile_rows` of them are real, they belong to `tile_slots` and
    the first is its token number `tile_starts`. Rows that are not real come back as zeros.
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    WIDTH: tl.constexpr = (HEADS + 2 * KV_HEADS) * DIM
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest first
    group = tl.program_id(1)
    lanes = tl.arange(0, TILE * BLOCK_GROUP)
    token, head = lanes // BLOCK_GROUP, lanes % BLOCK_GROUP
    dims = tl.arange(0, DIM)
    begin = tl.load(tile_starts + tile)
    num_rows = tl.load(tile_rows + tile)
    table = tables + tl.load(tile_slots + tile) * table_stride
    row = (tile * TILE + token).to(tl.int64)
    is_head = head < GROUP
    real = (is_head & (token < num_rows))[:, None]
    q = tl.load(
        qkv + (row * WIDTH + (group * GROUP + head) * DIM)[:, None] + dims[None, :],
        real,
        other=0.0,
    )
    last = begin + token  # the newest key that a row sees
    most = tl.full((TILE * BLOCK_GROUP,), -float("inf"), tl.float32)
    mass = tl.zeros((TILE * BLOCK_GROUP,), tl.float32)
    mixed = tl.zeros((TILE * BLOCK_GROUP, DIM), tl.float32)
    end = tl.where(num_rows > 0, begin + num_rows, 0)
    for start in tl.range(0, end, BLOCK):
        positions = start + tl.arange(0, BLOCK)
        known = positions < end
        places = _rows_of_pages(table, positions, known, PAGE) * KV_HEADS + group
        there = cache + places[:, None] * DIM + dims[None, :]
        keys = tl.load(there, known[:, None], other=0.0)
        values = tl.load(there + to_values, known[:, None], other=0.0)
        scores = tl.dot(q, keys.T, input_precision="ieee") * (SCALE * LOG2E)
        scores = tl.where(positions[None, :] <= last[:, None], scores, -float("inf"))
        higher = tl.maximum(most, tl.max(scores, axis=1))
        shrink = tl.exp2(most - higher)
        share = tl.exp2(scores - higher[:, None])
        mass = mass * shrink + tl.sum(share, axis=1)
        mixed = tl.dot(share.to(q.dtype), values, mixed * shrink[:, None], input_precision="ieee")
        most = higher
    result = tl.where(real, mixed / tl.where(mass > 0, mass, 1.0)[:, None], 0.0)
    there = out + (row * HEADS + group * GROUP + head)[:, None] * DIM + dims[None, :]
    tl.store(there, result.to(out.dtype.element_ty), is_head[:, None])
