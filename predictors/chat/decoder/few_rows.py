"""A block's linears in a decode step of 2 to 64 rows with fp8 weights.

cuBLAS' fp8 matmul is slower than its bfloat16 one at so few rows, or has no algorithm: only the
widest layer goes through it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from predictors.chat.decoder.few_rows_kernels import few_rows_kernel
from predictors.chat.decoder.fused_linears import (
    RowsLinears,
    chained,
    gated,
    is_chained,
    power_of_two,
)
from predictors.chat.decoder.layers import RMSNorm
from predictors.chat.decoder.operations import Layer, Stream, Wide, values_of
from predictors.compute.kernels.fp8 import Fp8Linear

MOST_ROWS = 64
BLOCK_N = 64
LEAST_BLOCK_K = 64
MOST_SPLITS = 8
MOST_PROGRAMS = 264
"""Two on each of an H200's 132 multiprocessors."""


@dataclass(frozen=True, slots=True)
class SplitScratch:
    """Sums of parts, float32, and the parts that have arrived per tile, int32 and zero between two
    kernels. Kernels that follow one another share it."""

    partial: Tensor
    arrivals: Tensor

    @classmethod
    def of(cls, device: torch.device) -> SplitScratch:
        partial = torch.empty(MOST_PROGRAMS * BLOCK_N * MOST_ROWS, device=device)
        return cls(partial, torch.zeros(MOST_PROGRAMS, dtype=torch.int32, device=device))


class FewRowsLinears(RowsLinears):
    """Rows are quantised for the layer of gate and up alone."""

    def __init__(self, scratch: SplitScratch) -> None:
        self._split = scratch

    def normed_linear(self, x: Stream, norm: RMSNorm, layer: Layer) -> Tensor:
        if self._takes(layer):
            normed = self.normed(values_of(x), norm)
            return few_rows(normed, layer, self._split, bias=layer.bias)
        return super().normed_linear(x, norm, layer)

    def added_linear(self, stream: Stream, x: Wide, layer: Layer, following: RMSNorm) -> Stream:
        """Overwrites the stream."""
        if isinstance(x, Tensor) and self._takes(layer):
            return few_rows(x, layer, self._split, residual=values_of(stream))
        return super().added_linear(stream, x, layer, following)

    def gated_linear(self, x: Stream, norm: RMSNorm, layer: Layer) -> Wide:
        if isinstance(layer, Fp8Linear):
            return gated(RowsLinears.normed_linear(self, x, norm, layer))
        return super().gated_linear(x, norm, layer)

    def narrowed(self, wide: Tensor, layer: Layer) -> None:
        return None

    def _takes(self, layer: Layer) -> TypeGuard[Fp8Linear]:
        return isinstance(layer, Fp8Linear) and not layer.weight.shape[1] % LEAST_BLOCK_K


def few_rows(
    x: Tensor,
    layer: Fp8Linear,
    scratch: SplitScratch,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """The product of x (rows, features) and the layer's weight, plus `bias` or `residual`, which it
    then overwrites."""
    rows, features = x.shape
    width = layer.out_features
    padded = max(16, power_of_two(rows))
    block, splits, stages = tiling(padded, width, features)
    out = x.new_empty(rows, width) if residual is None else residual
    few_rows_kernel[(-(-width // BLOCK_N), splits)](
        x,
        TensorDescriptor.from_tensor(layer.weight, [BLOCK_N, block]),
        layer.weight_scale,
        x if bias is None else bias,
        x if residual is None else residual,
        out,
        scratch.partial,
        scratch.arrivals,
        rows,
        K=features,
        N=width,
        ROWS=padded,
        BLOCK_N=BLOCK_N,
        BLOCK_K=block,
        SPLITS=splits,
        STAGES=stages,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        IS_CHAINED=is_chained(),
        num_warps=4,
        **chained(),
    )
    return out


def tiling(rows: int, width: int, features: int) -> tuple[int, int, int]:
    """Features at a time, parts of the sum, and loads under way: the fastest on an H200 at the
    sizes of 3B and 7B decoders."""
    tiles = -(-width // BLOCK_N)
    steps, splits = features // 256, 1
    while splits < MOST_SPLITS and 2 * splits * tiles <= MOST_PROGRAMS and steps >= 4 * splits:
        splits *= 2
    is_alone = rows <= 16 or splits * tiles <= MOST_PROGRAMS // 2
    block = next(size for size in (256, 128, LEAST_BLOCK_K) if not features % size)
    if not is_alone:
        block = min(block, 128)
    return block, splits, 3 if rows > 16 and block == 256 else 4
