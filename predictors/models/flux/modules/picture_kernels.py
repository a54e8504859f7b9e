"""Triton kernels over channels_last pictures, and over attention scores.

Sums are float32 and in a fixed order, without atomics: equal inputs give equal bits. Channels and
groups are compiled in, a request's sizes never, so one compiled form serves every picture.
Imported on CUDA only, and by tests in Triton's interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

_SIZES = ["num_pixels", "chunk_pixels", "num_chunks", "width"]


@triton.jit
def _read(picture, bias, residual, sample, pixels, channels, mask, num_pixels, width,
          C: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
          IS_FOLDED: tl.constexpr):  # fmt: skip
    """picture + bias + residual at (pixels, channels), float32; 0 outside of mask."""
    rows = (sample * num_pixels + pixels).to(tl.int64) * C
    here = rows[:, None] + channels[None, :]
    if IS_FOLDED:
        # (n, h/2 + 1, w/2 + 1, 4, C): pixel (y, x) is phase (y % 2, x % 2) at (y + 1, x + 1) // 2
        y, x = pixels // width, pixels % width
        height = num_pixels // width
        grid_row = sample * (height // 2 + 1) + (y + 1) // 2
        cell = (grid_row.to(tl.int64) * (width // 2 + 1) + (x + 1) // 2) * 4 + (y % 2) * 2 + x % 2
        there = (cell * C)[:, None] + channels[None, :]
        value = tl.load(picture + there, mask, other=0.0).to(tl.float32)
    else:
        value = tl.load(picture + here, mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        added = tl.load(bias + channels, channels < C, other=0.0).to(tl.float32)
        value += added[None, :]
    if HAS_RESIDUAL:
        value += tl.load(residual + here, mask, other=0.0).to(tl.float32)
    return value


@triton.jit(do_not_specialize=_SIZES)
def moments_kernel(
    picture,
    bias,
    residual,
    total,
    parts,
    num_pixels,
    chunk_pixels,
    num_chunks,
    width,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    IS_FOLDED: tl.constexpr,
    WRITES: tl.constexpr,
    MEASURES: tl.constexpr,
):
    """One chunk: total = picture + bias + residual; parts (n, num_chunks, 2, C) = its channels'
    means and sums of squared differences from them."""
    chunk, sample = tl.program_id(0), tl.program_id(1)
    begin = chunk * chunk_pixels
    end = tl.minimum(begin + chunk_pixels, num_pixels)
    channels = tl.arange(0, BLOCK_C)
    in_c = channels < C
    first = _read(picture, bias, residual, sample, begin + tl.arange(0, 1), channels,
                  in_c[None, :], num_pixels, width, C, HAS_BIAS, HAS_RESIDUAL,
                  IS_FOLDED)  # fmt: skip
    sums = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for start in range(begin, end, BLOCK_P):
        pixels = start + tl.arange(0, BLOCK_P)
        mask = (pixels < end)[:, None] & in_c[None, :]
        value = _read(picture, bias, residual, sample, pixels, channels, mask, num_pixels, width,
                      C, HAS_BIAS, HAS_RESIDUAL, IS_FOLDED)  # fmt: skip
        if WRITES:
            stored = value.to(total.dtype.element_ty)
            rows = (sample * num_pixels + pixels).to(tl.int64) * C
            tl.store(total + rows[:, None] + channels[None, :], stored, mask)
            value = stored.to(tl.float32)  # the norm sees what the next block will
        if MEASURES:
            apart = tl.where(mask, value - first, 0.0)
            sums += apart
            squares += apart * apart
    if MEASURES:
        count = (end - begin).to(tl.float32)
        shifted = tl.sum(sums, axis=0)
        spread = tl.sum(squares, axis=0) - shifted * shifted / count
        mean = tl.sum(first, axis=0) + shifted / count
        here = parts + (sample * num_chunks + chunk) * (2 * C) + channels
        tl.store(here, mean, in_c)
        tl.store(here + C, tl.maximum(spread, 0.0), in_c)


@triton.jit(do_not_specialize=_SIZES)
def merge_kernel(
    parts,
    weight,
    shift,
    bias,
    table,
    num_pixels,
    chunk_pixels,
    num_chunks,
    eps,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ADDS_BIAS: tl.constexpr,
):
    """One group of one sample: table (n, 2, C) = factor and offset for each of its channels; the
    offset includes a bias that the picture does not have yet."""
    group, sample = tl.program_id(0), tl.program_id(1)
    chunks, lane = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_G)
    channels = group * GROUP + lane
    mask = (chunks < num_chunks)[:, None] & (lane < GROUP)[None, :]
    here = parts + ((sample * num_chunks + chunks) * (2 * C))[:, None] + channels[None, :]
    means = tl.load(here, mask, other=0.0)
    spreads = tl.load(here + C, mask, other=0.0)
    counts = tl.minimum(num_pixels - chunks * chunk_pixels, chunk_pixels).to(tl.float32)
    counts = tl.where(mask, counts[:, None], 0.0)
    total = num_pixels.to(tl.float32) * GROUP
    mean = tl.sum(tl.sum(means * counts, axis=0), axis=0) / total
    apart = means - mean
    spread = tl.sum(tl.sum(spreads + counts * apart * apart, axis=0), axis=0)
    inverse = 1.0 / tl.sqrt(spread / total + eps)
    in_group = lane < GROUP
    scale = tl.load(weight + channels, in_group, other=0.0).to(tl.float32) * inverse
    offset = tl.load(shift + channels, in_group, other=0.0).to(tl.float32) - mean * scale
    if ADDS_BIAS:
        offset += tl.load(bias + channels, in_group, other=0.0).to(tl.float32) * scale
    out = table + sample * (2 * C) + channels
    tl.store(out, scale, in_group)
    tl.store(out + C, offset, in_group)


@triton.jit(do_not_specialize=_SIZES)
def apply_kernel(
    picture,
    table,
    normed,
    num_pixels,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    SILU: tl.constexpr,
):
    """normed = picture * table[0] + table[1], with or without SiLU."""
    sample = tl.program_id(1)
    pixels = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channels = tl.arange(0, BLOCK_C)
    in_c = channels < C
    mask = (pixels < num_pixels)[:, None] & in_c[None, :]
    rows = (sample * num_pixels + pixels).to(tl.int64) * C
    here = rows[:, None] + channels[None, :]
    value = tl.load(picture + here, mask, other=0.0).to(tl.float32)
    scale = tl.load(table + sample * (2 * C) + channels, in_c, other=0.0)
    offset = tl.load(table + sample * (2 * C) + C + channels, in_c, other=0.0)
    value = value * scale[None, :] + offset[None, :]
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    tl.store(normed + here, value.to(normed.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["num_keys"])
def weights_kernel(scores, weights, sums, num_keys, scale, STEP: tl.constexpr, BLOCK: tl.constexpr):
    """One row of scores (rows, num_keys) float32: weights = exp(scale * (scores - largest)) in
    their dtype, and their sum, by which the product with the weights has to be divided. Rows start
    at multiples of STEP, so that sixteen bytes are read at once for any num_keys."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    stride = tl.cdiv(num_keys, STEP) * STEP
    here, there = scores + row * stride, weights + row * stride
    tops = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in tl.range(0, num_keys, BLOCK):
        keys = start + lane
        score = tl.load(here + keys, keys < stride, other=float("-inf"))
        tops = tl.maximum(tops, tl.where(keys < num_keys, score, float("-inf")))
    top = tl.max(tops, axis=0)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(0, num_keys, BLOCK):
        keys = start + lane
        score = tl.load(here + keys, keys < stride, other=float("-inf"))
        score = tl.where(keys < num_keys, score, float("-inf"))
        weight = tl.exp((score - top) * scale).to(weights.dtype.element_ty)
        tl.store(there + keys, weight, keys < stride)
        total += weight.to(tl.float32)  # as rounded: what is divided by is what was multiplied
    tl.store(sums + row, tl.sum(total, axis=0))
