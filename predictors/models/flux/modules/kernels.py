"""Triton kernels that do several of a block's small operations in one pass over memory.

One program computes one token, so a token's result depends on that token alone. Sums are float32
and in a fixed order. Kernels are never specialised on a request's sizes: one compiled form serves
every picture. Imported on CUDA only, and by tests in Triton's interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

_SIZES = ["num_tokens", "num_text", "modulation_stride", "to_text", "gate_to_text"]


@triton.jit
def _to_e4m3(value, scales, row):
    """One row as e4m3 with its scale stored; see compute/kernels/fp8.py `quantize_rows`."""
    largest = tl.maximum(tl.max(tl.abs(value), axis=0), 1e-12)
    tl.store(scales + row, largest / 448.0)
    return (value * (448.0 / largest)).to(tl.float8e4nv)


@triton.jit(do_not_specialize=_SIZES)
def add_norm_kernel(
    tokens,
    update,
    normed,
    scales,
    gate,
    shift,
    scale,
    num_tokens,
    num_text,
    modulation_stride,
    to_text,
    gate_to_text,
    EPS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_UPDATE: tl.constexpr,
    IS_FP8: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """tokens += gate * update in place; normed = layer_norm(tokens) * (1 + scale) + shift.

    gate, shift and scale point to the picture's; the text's are `to_text` elements further on.
    Every distance is a multiple of DIM, which keeps loads wide.
    """
    row = tl.program_id(0).to(tl.int64)
    is_text = ((row % num_tokens) < num_text).to(tl.int64)
    sample = (row // num_tokens) * modulation_stride
    columns = tl.arange(0, BLOCK)
    mask = columns < DIM
    here = tokens + row * DIM + columns
    change = tl.multiple_of(sample + is_text * to_text, 16) + columns
    value = tl.load(here, mask, other=0.0).to(tl.float32)
    if HAS_UPDATE:
        gated = tl.multiple_of(sample + is_text * gate_to_text, 16) + columns
        by = tl.load(gate + gated, mask, other=0.0).to(tl.float32)
        value += by * tl.load(update + row * DIM + columns, mask, other=0.0).to(tl.float32)
        if LIMIT > 0:
            value = tl.clamp(value, -LIMIT, LIMIT)
        stored = value.to(tokens.dtype.element_ty)
        tl.store(here, stored, mask)
        value = stored.to(tl.float32)  # the norm sees what the next block will
    factor = 1.0 + tl.load(scale + change, mask, other=0.0).to(tl.float32)
    offset = tl.load(shift + change, mask, other=0.0).to(tl.float32)
    mean = tl.sum(value, axis=0) / DIM
    centred = tl.where(mask, value - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / DIM
    result = centred * tl.rsqrt(variance + EPS) * factor + offset
    there = normed + row * DIM + columns
    if IS_FP8:
        tl.store(there, _to_e4m3(result, scales, row), mask)
    else:
        tl.store(there, result.to(normed.dtype.element_ty), mask)


@triton.jit
def _of_stream(text, image, columns, mask, is_text):
    """A row of a token's stream's parameters, the text's or the picture's, in float32."""
    first = tl.load(text + columns, mask & is_text, other=0.0).to(tl.float32)
    second = tl.load(image + columns, mask & (is_text == 0), other=0.0).to(tl.float32)
    return first + second


@triton.jit(do_not_specialize=_SIZES)
def heads_kernel(
    qkv,
    narrow,
    query_text,
    query_image,
    key_text,
    key_image,
    rotary,
    num_tokens,
    num_text,
    EPS: tl.constexpr,
    HEADS: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    HALF: tl.constexpr,
    IS_FP8: tl.constexpr,
):
    """RMS norm and rotation of query (program 0 of axis 1) and key (1), all heads of a token of qkv
    (tokens, 3, HEADS, 2 * HALF); in place, or with the value (2) into narrow (3, tokens, HEADS,
    2 * HALF) as e4m3."""
    row = tl.program_id(0).to(tl.int64)
    which = tl.program_id(1)
    token = row % num_tokens
    is_text = token < num_text
    heads = tl.arange(0, HEADS_BLOCK)[:, None]
    dims = tl.arange(0, 2 * HALF)
    mask = heads < HEADS
    within = heads * (2 * HALF) + dims[None, :]
    here = qkv + (row * 3 + which) * (HEADS * 2 * HALF) + within
    value = tl.load(here, mask, other=0.0).to(tl.float32)
    everywhere = dims >= 0
    query = _of_stream(query_text, query_image, dims, everywhere & (which == 0), is_text)
    key = _of_stream(key_text, key_image, dims, everywhere & (which == 1), is_text)
    mean = tl.sum(value * value, axis=1) / (2 * HALF)
    normed = value * tl.rsqrt(mean + EPS)[:, None] * (query + key)[None, :]
    normed = normed.to(qkv.dtype.element_ty).to(tl.float32)  # rounded where torch's norm rounds
    real, imaginary = tl.split(tl.reshape(normed, (HEADS_BLOCK, HALF, 2)))
    angles = tl.arange(0, HALF)
    cos = tl.load(rotary + token * HALF + angles)[None, :]
    sin = tl.load(rotary + (num_tokens + token) * HALF + angles)[None, :]
    turned = tl.join(real * cos - imaginary * sin, imaginary * cos + real * sin)
    turned = tl.reshape(turned, (HEADS_BLOCK, 2 * HALF))
    if IS_FP8:
        all_rows = tl.num_programs(0).to(tl.int64)
        there = narrow + (which * all_rows + row) * (HEADS * 2 * HALF) + within
        result = tl.where(which == 2, value, turned)
        tl.store(there, tl.clamp(result, -448.0, 448.0).to(tl.float8e4nv), mask)
    else:
        tl.store(here, turned.to(qkv.dtype.element_ty), mask)


@triton.jit
def gelu_rows_kernel(
    mixed,
    wide,
    values,
    scales,
    NUM_MIXED: tl.constexpr,
    NUM_WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """values, scales = rows of (mixed, GELU(wide)) side by side, as e4m3. Either may be empty."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    is_mixed = columns < NUM_MIXED
    is_wide = (columns >= NUM_MIXED) & (columns < NUM_MIXED + NUM_WIDE)
    result = tl.load(mixed + row * NUM_MIXED + columns, is_mixed, other=0.0).to(tl.float32)
    if NUM_WIDE > 0:
        up = tl.load(wide + row * NUM_WIDE + columns - NUM_MIXED, is_wide, other=0.0)
        x = up.to(tl.float32)
        # x/2 (1 + tanh u) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
        inner = 1.5957691216057308 * (x + 0.044715 * x * x * x)
        result += x / (1.0 + tl.exp(-tl.maximum(inner, -80.0)))  # beyond, exp leaves float32
    there = values + row * (NUM_MIXED + NUM_WIDE) + columns
    tl.store(there, _to_e4m3(result, scales, row), is_mixed | is_wide)
