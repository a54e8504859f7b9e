"""A block's linears on a GPU with their norm, gate or residual: for one row and for many, in the
weights' own dtype and in fp8.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from predictors.chat.decoder.layers import RMSNorm
from predictors.chat.decoder.operations import Layer, Stream, Wide, values_of
from predictors.chat.decoder.row_kernels import gate_kernel, norm_kernel
from predictors.chat.decoder.skinny_kernels import row_kernel
from predictors.compute.kernels.attention import HOPPER
from predictors.compute.kernels.fp8 import E4M3, Fp8Linear, RowScaled

SKINNY_BLOCK = 1024
WIDE = 2**16
GATE_BLOCK = 1024
FP8_ROWS = 16
"""cuBLAS multiplies e4m3 in multiples of it."""
LEAST_FP8_ROWS = 64
"""With fewer it has no algorithm for the widest inputs: of 48 rows for 11,008 features, of 32 for
18,944 (torch 2.11, H200)."""


class RowsLinears:
    """Linears over a matrix of rows; the kernel before an fp8 layer quantises its input."""

    def normed_linear(self, x: Stream, norm: RMSNorm, layer: Layer) -> Tensor:
        values = values_of(x)
        if isinstance(layer, Fp8Linear):
            return _scaled(_narrow(values, norm), layer, len(values))
        bias: Tensor | None = layer.bias
        if bias is None:
            return torch.mm(_normed(values, norm), layer.weight.t())
        return torch.addmm(bias, _normed(values, norm), layer.weight.t())

    def added_linear(self, stream: Stream, x: Wide, layer: Layer, following: RMSNorm) -> Stream:
        """Overwrites the stream."""
        values = values_of(stream)
        if isinstance(layer, Fp8Linear):
            narrowed = _narrow(x, None) if isinstance(x, Tensor) else x
            assert isinstance(narrowed, RowScaled)
            return values.add_(_scaled(narrowed, layer, len(values)))
        assert isinstance(x, Tensor)
        return values.addmm_(x, layer.weight.t())

    def gated_linear(self, x: Stream, norm: RMSNorm, layer: Layer) -> Wide:
        values = values_of(x)
        if isinstance(layer, Fp8Linear):
            return gated_narrow(_scaled(_narrow(values, norm), layer, len(values)))
        return gated(torch.mm(_normed(values, norm), layer.weight.t()))

    def logits(
        self, x: Stream, norm: RMSNorm, head: nn.Linear, out: Tensor | None = None
    ) -> Tensor:
        normed, weight = _normed(values_of(x), norm), head.weight.t()
        if out is None:
            out = torch.empty(len(normed), weight.shape[1], device=normed.device)
        if normed.is_cuda and normed.dtype != torch.float32:  # cuBLAS sums and writes float32
            return torch.mm(normed, weight, out_dtype=torch.float32, out=out)
        return out.copy_(torch.mm(normed, weight))

    def normed(self, x: Tensor, norm: RMSNorm) -> Tensor:
        return _normed(x, norm)

    def gated(self, wide: Tensor) -> Tensor:
        return gated(wide)

    def narrowed(self, wide: Tensor, layer: Layer) -> RowScaled | None:
        return gated_narrow(wide) if isinstance(layer, Fp8Linear) else None


class OneRowLinears:
    """Linears over one row, which is not quantised for an fp8 weight."""

    def normed_linear(self, x: Stream, norm: RMSNorm, layer: Layer) -> Tensor:
        return skinny(values_of(x), layer, norm=norm)

    def added_linear(self, stream: Stream, x: Wide, layer: Layer, following: RMSNorm) -> Tensor:
        assert isinstance(x, Tensor)
        return skinny(x, layer, residual=values_of(stream))

    def gated_linear(self, x: Stream, norm: RMSNorm, layer: Layer) -> Tensor:
        return skinny(values_of(x), layer, norm=norm, is_gated=True)

    def logits(
        self, x: Stream, norm: RMSNorm, head: nn.Linear, out: Tensor | None = None
    ) -> Tensor:
        values = values_of(x)
        if out is None:
            out = torch.empty(1, len(head.weight), device=values.device)
        return skinny(values, head, norm=norm, out=out)

    def normed(self, x: Tensor, norm: RMSNorm) -> Tensor:
        return _normed(x, norm)

    def gated(self, wide: Tensor) -> Tensor:
        return gated(wide)

    def narrowed(self, wide: Tensor, layer: Layer) -> None:
        return None


def skinny(
    x: Tensor,
    layer: Layer,
    *,
    norm: RMSNorm | None = None,
    residual: Tensor | None = None,
    is_gated: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """layer(norm(x)) + residual, or the gated product, for x (1, features): one kernel. Written to
    `out` (1, width), of any dtype, if it is given."""
    features = x.shape[1]
    weight, bias = layer.weight, None if is_gated else layer.bias
    scales = layer.weight_scale if isinstance(layer, Fp8Linear) else None
    width = len(weight) // 2 if is_gated else len(weight)
    if out is None:
        out = torch.empty(1, width, dtype=x.dtype, device=x.device)
    block, warps = _tiling(width, is_gated)
    row_kernel[(-(-width // block),)](
        x,
        weight,
        x if scales is None else scales,
        x if bias is None else bias,
        x if norm is None else norm.weight,
        x if residual is None else residual,
        out,
        K=features,
        N=width,
        EPS=0.0 if norm is None else norm.eps,
        HAS_NORM=norm is not None,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        HAS_SCALES=scales is not None,
        IS_GATED=is_gated,
        IS_CHAINED=is_chained(),
        BLOCK_N=block,
        BLOCK_K=SKINNY_BLOCK,
        num_warps=warps,
        **chained(),
    )
    return out


def _tiling(width: int, is_gated: bool) -> tuple[int, int]:
    """Features per program, and warps: the fastest on an H200 at the sizes of a 3B decoder."""
    if is_gated:
        return 8, 8
    return (2, 4) if width < WIDE else (16, 4)


@lru_cache(maxsize=1)
def is_chained() -> bool:
    """True where a kernel may start before its predecessor has ended, up to its own wait: Hopper's
    programmatic launch, which hides the microseconds between two short kernels."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= HOPPER


def chained() -> dict[str, bool]:
    return {"launch_pdl": True} if is_chained() else {}


def _normed(x: Tensor, norm: RMSNorm) -> Tensor:
    out = torch.empty_like(x)
    _pass_over(x, norm, out, None)
    return out


def _narrow(x: Tensor, norm: RMSNorm | None) -> RowScaled:
    """norm(x), or x itself, in fp8."""
    out = _empty_rows(x, x.shape[1])
    _pass_over(x, norm, *out)
    return out


def _pass_over(x: Tensor, norm: RMSNorm | None, out: Tensor, scales: Tensor | None) -> None:
    norm_kernel[(len(x),)](
        x,
        x if norm is None else norm.weight,
        out,
        x if scales is None else scales,
        EPS=0.0 if norm is None else norm.eps,
        DIM=x.shape[1],
        BLOCK=power_of_two(x.shape[1]),
        HAS_NORM=norm is not None,
        IS_FP8=scales is not None,
    )


def gated(wide: Tensor) -> Tensor:
    """silu(first half) * second half of wide (rows, 2 n)."""
    width = wide.shape[1] // 2
    out = wide.new_empty(len(wide), width)
    grid = (len(wide), -(-width // GATE_BLOCK))
    gate_kernel[grid](wide, out, wide, DIM=width, BLOCK=GATE_BLOCK, IS_FP8=False)
    return out


def gated_narrow(wide: Tensor) -> RowScaled:
    width = wide.shape[1] // 2
    out = _empty_rows(wide, width)
    block = power_of_two(width)
    gate_kernel[(len(wide), 1)](wide, *out, DIM=width, BLOCK=block, IS_FP8=True, num_warps=8)
    return out


def _empty_rows(like: Tensor, width: int) -> RowScaled:
    rows = max(LEAST_FP8_ROWS, -(-len(like) // FP8_ROWS) * FP8_ROWS)
    values = torch.empty(rows, width, dtype=E4M3, device=like.device)
    return RowScaled(values, torch.empty(rows, 1, device=like.device))


def _scaled(x: RowScaled, layer: Fp8Linear, rows: int) -> Tensor:
    shape = (len(x.values), layer.out_features)
    out = torch.empty(shape, dtype=layer.bias.dtype, device=layer.bias.device)
    scaled: Tensor = layer(x, out)
    return scaled[:rows]


def power_of_two(size: int) -> int:
    """The least power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()
