"""Triton kernels that do several of a block's small steps in one pass over memory. Knows no module:
pointers, sizes and strides only.

One program takes one token, so a token's result depends on nothing but that token. Sums are float32
and in a fixed order. Sizes of a request are never specialised on: one compiled form of each kernel
serves every picture. Imported on CUDA only, and by tests in Triton's interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

_SIZES = ["num_tokens", "num_text", "modulation_stride"]


@triton.jit
def _to_e4m3(value, scales, row):
    """One row as e4m3 with its scale stored; see compute/fp8.py `quantize_rows`."""
    largest = tl.max(tl.abs(value), axis=0)
    scale = tl.maximum(largest, 1e-12) / 448.0
    tl.store(scales + row, scale)
    return tl.clamp(value / scale, -448.0, 448.0).to(tl.float8e4nv)


@triton.jit
def _of_stream(text, image, offset, columns, mask, is_text):
    """A row of per-stream parameters: the text's for its tokens, else the picture's; float32."""
    first = tl.load(text + offset + columns, mask & is_text, other=0.0).to(tl.float32)
    second = tl.load(image + offset + columns, mask & (is_text == 0), other=0.0).to(tl.float32)
    return first + second


@triton.jit(do_not_specialize=_SIZES)
def enter_kernel(
    tokens,
    update,
    normed,
    scales,
    gate_text,
    gate_image,
    shift_text,
    shift_image,
    scale_text,
    scale_image,
    num_tokens,
    num_text,
    modulation_stride,
    EPS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_UPDATE: tl.constexpr,
    IS_FP8: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """tokens += gate * update in place; normed = layer_norm(tokens) * (1 + scale) + shift."""
    row = tl.program_id(0).to(tl.int64)
    is_text = (row % num_tokens) < num_text
    offset = (row // num_tokens) * modulation_stride
    columns = tl.arange(0, BLOCK)
    mask = columns < DIM
    here = tokens + row * DIM + columns
    value = tl.load(here, mask, other=0.0).to(tl.float32)
    if HAS_UPDATE:
        gate = _of_stream(gate_text, gate_image, offset, columns, mask, is_text)
        value += gate * tl.load(update + row * DIM + columns, mask, other=0.0).to(tl.float32)
        if LIMIT > 0:
            value = tl.clamp(value, -LIMIT, LIMIT)
        stored = value.to(tokens.dtype.element_ty)
        tl.store(here, stored, mask)
        value = stored.to(tl.float32)  # the norm sees what the next block will
    mean = tl.sum(value, axis=0) / DIM
    centred = tl.where(mask, value - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / DIM
    scale = _of_stream(scale_text, scale_image, offset, columns, mask, is_text)
    shift = _of_stream(shift_text, shift_image, offset, columns, mask, is_text)
    result = centred * tl.rsqrt(variance + EPS) * (1.0 + scale) + shift
    there = normed + row * DIM + columns
    if IS_FP8:
        tl.store(there, _to_e4m3(result, scales, row), mask)
    else:
        tl.store(there, result.to(normed.dtype.element_ty), mask)


@triton.jit(do_not_specialize=_SIZES)
def heads_kernel(
    qkv,
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
):
    """RMS norm and rotation of query (program 0 of axis 1) and key (1) in place, all heads of a
    token of qkv (tokens, 3, HEADS, 2 * HALF)."""
    row = tl.program_id(0).to(tl.int64)
    is_key = tl.program_id(1)
    token = row % num_tokens
    is_text = token < num_text
    heads = tl.arange(0, HEADS_BLOCK)[:, None]
    dims = tl.arange(0, 2 * HALF)
    mask = heads < HEADS
    here = qkv + (row * 3 + is_key) * (HEADS * 2 * HALF) + heads * (2 * HALF) + dims[None, :]
    value = tl.load(here, mask, other=0.0).to(tl.float32)
    everywhere = dims >= 0
    query = _of_stream(query_text, query_image, 0, dims, everywhere & (is_key == 0), is_text)
    key = _of_stream(key_text, key_image, 0, dims, everywhere & (is_key == 1), is_text)
    mean = tl.sum(value * value, axis=1) / (2 * HALF)
    normed = value * tl.rsqrt(mean + EPS)[:, None] * (query + key)[None, :]
    normed = normed.to(qkv.dtype.element_ty).to(tl.float32)  # rounded where torch's norm rounds
    real, imaginary = tl.split(tl.reshape(normed, (HEADS_BLOCK, HALF, 2)))
    angles = tl.arange(0, HALF)
    cos = tl.load(rotary + token * HALF + angles)[None, :]
    sin = tl.load(rotary + (num_tokens + token) * HALF + angles)[None, :]
    turned = tl.join(real * cos - imaginary * sin, imaginary * cos + real * sin)
    turned = tl.reshape(turned, (HEADS_BLOCK, 2 * HALF))
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
        result += x / (1.0 + tl.exp(-inner))
    there = values + row * (NUM_MIXED + NUM_WIDE) + columns
    tl.store(there, _to_e4m3(result, scales, row), is_mixed | is_wide)
