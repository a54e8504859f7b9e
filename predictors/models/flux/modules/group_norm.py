"""Group norm with SiLU over channels_last pictures, in two passes over memory.

torch's own kernel needs another memory format, and bias, residual, norm and SiLU would be a pass
each. Here the first pass adds the bias and residual of the convolution before, writes the sum if it
is needed again, and computes its moments. A small kernel turns them and the norm's weights into one
scale and one shift per channel. The second pass applies those and SiLU.

Moments are float32 and merged in a fixed order without atomics (Chan, Golub, LeVeque 1979): each
chunk of pixels sums differences from its own first pixel, so a large mean costs no digits and
equal inputs give equal bits. Channels and groups are compiled in, a request's sizes are not.
Imported on CUDA only, and by tests in Triton's interpreter.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
from torch import Tensor, nn

from predictors.models.flux.modules.decoder import Sum
from predictors.models.flux.modules.picture_kernels import (
    apply_kernel,
    merge_kernel,
    moments_kernel,
)

MAX_CHUNKS = 512  # about as many programs as an H100 runs at once, and one load for the merge
TILE = 8192  # values in flight per program
WARPS = 8


def add_up(x: Sum) -> Tensor:
    """The sum, added up in float32 and rounded once; channels_last."""
    total = _empty(x)
    _measure(x, total, None)
    return total


def group_norm(x: Sum, norm: nn.GroupNorm, *, silu: bool, keep: bool) -> tuple[Tensor, Tensor]:
    """The sum added up, and its group norm, both channels_last in the picture's dtype.

    Without `keep` the sum is not written, and the first result is the picture without its bias; a
    residual or a folded picture is always added up. Pictures must be channels_last.
    """
    keep = keep or x.residual is not None or x.is_folded
    total = _empty(x) if keep else x.picture
    n, channels, height, width = total.shape
    num_pixels = height * width
    chunk = _chunk_pixels(num_pixels, channels)
    num_chunks = triton.cdiv(num_pixels, chunk)
    parts = torch.empty((n, num_chunks, 2, channels), dtype=torch.float32, device=total.device)
    _measure(x, total if keep else None, parts)
    table = torch.empty((n, 2, channels), dtype=torch.float32, device=total.device)
    adds_bias = x.bias is not None and not keep
    group = channels // norm.num_groups
    merge_kernel[(norm.num_groups, n)](
        parts, norm.weight, norm.bias, x.bias if adds_bias else norm.bias, table,
        num_pixels, chunk, num_chunks, norm.eps,
        C=channels, GROUP=group, BLOCK_G=triton.next_power_of_2(group), BLOCK_N=MAX_CHUNKS,
        ADDS_BIAS=adds_bias, num_warps=WARPS,
    )  # fmt: skip
    normed = torch.empty_like(total)
    block_c, block_p = _tile(channels)
    apply_kernel[(triton.cdiv(num_pixels, block_p), n)](
        total, table, normed, num_pixels,
        C=channels, BLOCK_C=block_c, BLOCK_P=block_p, SILU=silu, num_warps=WARPS,
    )  # fmt: skip
    return total, normed


def reference(x: Sum, norm: nn.GroupNorm, *, silu: bool) -> tuple[Tensor, Tensor]:
    """`group_norm` in torch, in the picture's dtype; `is_folded` is not read."""
    total = x.picture
    if x.bias is not None:
        total = total + x.bias[:, None, None]
    if x.residual is not None:
        total = total + x.residual
    normed = F.group_norm(total, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return total, F.silu(normed) if silu else normed


def _measure(x: Sum, total: Tensor | None, parts: Tensor | None) -> None:
    n, channels, height, width = _size(x)
    num_pixels = height * width
    chunk = _chunk_pixels(num_pixels, channels)
    num_chunks = triton.cdiv(num_pixels, chunk)
    block_c, block_p = _tile(channels)
    for tensor in (x.picture, x.residual):
        assert tensor is None or tensor.is_contiguous(memory_format=torch.channels_last)
    nothing = x.picture  # a pointer that is never followed
    moments_kernel[(num_chunks, n)](
        x.picture,
        nothing if x.bias is None else x.bias,
        nothing if x.residual is None else x.residual,
        nothing if total is None else total,
        nothing if parts is None else parts,
        num_pixels, chunk, num_chunks, width,
        C=channels, BLOCK_C=block_c, BLOCK_P=block_p,
        HAS_BIAS=x.bias is not None, HAS_RESIDUAL=x.residual is not None,
        IS_FOLDED=x.is_folded, WRITES=total is not None, MEASURES=parts is not None,
        num_warps=WARPS,
    )  # fmt: skip


def _size(x: Sum) -> tuple[int, int, int, int]:
    n, channels, height, width = x.picture.shape
    return (n, channels // 4, 2 * height - 2, 2 * width - 2) if x.is_folded else (
        n, channels, height, width)  # fmt: skip


def _empty(x: Sum) -> Tensor:
    like = x.picture
    return torch.empty(
        _size(x), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _tile(channels: int) -> tuple[int, int]:
    # channels and pixels of one tile
    block_c = triton.next_power_of_2(channels)
    return block_c, max(TILE // block_c, 1)


def _chunk_pixels(num_pixels: int, channels: int) -> int:
    # whole tiles, and no more chunks than the merge reads
    _, block_p = _tile(channels)
    return -(-num_pixels // (MAX_CHUNKS * block_p)) * block_p
