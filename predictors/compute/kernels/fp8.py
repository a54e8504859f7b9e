"""Linears in 8-bit floating point (e4m3), scaled per token and per output feature. Knows no model.

A row of activations is scaled by its own largest magnitude as it is made, so there is nothing to
calibrate and a token never depends on its neighbours; a row of weights once, when it is quantised.
Hopper multiplies e4m3 at twice the rate of bfloat16 and reads half the bytes. The same arithmetic
in plain torch, `Fp8Linear.reference`, runs anywhere and is what tests hold the kernels to.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3
TINY = 1e-12  # an all-zero row has a scale too


class RowScaled(NamedTuple):
    """A matrix as `values * scales`."""

    values: Tensor
    """e4m3, (..., features)."""
    scales: Tensor
    """float32, (..., 1)."""


def quantize_rows(x: Tensor) -> RowScaled:
    """x (..., features) with one scale per row: largest magnitude / 448, rounded to nearest even.

    The reference of every kernel that quantises.
    """
    wide = x.float()
    largest = wide.abs().amax(dim=-1, keepdim=True).clamp(min=TINY)
    return RowScaled((wide * (LARGEST / largest)).to(E4M3), largest / LARGEST)


def dequantized(x: RowScaled) -> Tensor:
    """The float32 matrix that `x` stands for."""
    return x.values.float() * x.scales


class Fp8Linear(nn.Module):
    """A linear whose weight is e4m3: y = (x * W^T) scaled + bias."""

    weight: Tensor
    """e4m3 (out, in)."""
    weight_scale: Tensor
    """float32 (out, 1)."""
    bias: Tensor

    def __init__(self, weight: RowScaled, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.values)
        self.register_buffer("weight_scale", weight.scales)
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, layer: nn.Linear) -> Fp8Linear:
        """The quantised form of `layer`, on its device; the bias is shared, the weight is not. A
        layer without one gets zeros."""
        weight = layer.weight.detach()
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
        return cls(quantize_rows(weight), bias)

    @property
    def out_features(self) -> int:
        """Width of the result."""
        return self.weight.shape[0]

    def reference(self, values: Tensor) -> Tensor:
        """The product for dequantised float32 `values` (..., in): (..., out), the bias's dtype."""
        weight = dequantized(RowScaled(self.weight, self.weight_scale))
        return F.linear(values, weight, self.bias.float()).to(self.bias.dtype)

    def forward(self, x: RowScaled, out: Tensor) -> Tensor:
        """x (tokens, in) on a GPU with fp8 units into `out` (tokens, out) bfloat16."""
        torch.ops.aten._scaled_mm.out(
            x.values,
            self.weight.t(),
            scale_a=x.scales,
            scale_b=self.weight_scale.t(),
            bias=self.bias,
            out_dtype=out.dtype,
            use_fast_accum=True,
            out=out,
        )
        return out


def has_fp8_units(device: torch.device) -> bool:
    """Whether the device multiplies e4m3 in hardware: Ada (8.9), Hopper (9.0) and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
