"""Linear layers in 8-bit floating point (e4m3), scaled per token and per output feature.

Each row of activations is scaled by its own largest magnitude, so nothing is calibrated and a token
never depends on its neighbours. Hopper multiplies e4m3 at twice the rate of bfloat16 and reads half
the bytes. `Fp8Linear.reference` is the same arithmetic in plain torch, which tests compare with.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0  # largest value of e4m3
TINY = 1e-12  # scale of an all-zero row


class RowScaled(NamedTuple):
    """A matrix as `values * scales`."""

    values: Tensor
    """e4m3, (..., features)."""
    scales: Tensor
    """float32, (..., 1)."""


def quantize_rows(x: Tensor) -> RowScaled:
    """x (..., features) with one scale per row: largest magnitude / 448, rounded to nearest even.

    Kernels that quantise must give the same result.
    """
    wide = x.float()
    largest = wide.abs().amax(dim=-1, keepdim=True).clamp(min=TINY)
    return RowScaled((wide * (LARGEST / largest)).to(E4M3), largest / LARGEST)


def dequantized(x: RowScaled) -> Tensor:
    """The product of values and scales, in float32."""
    return x.values.float() * x.scales


class Fp8Linear(nn.Module):
    """A linear layer with an e4m3 weight: y = scales * (x W^T) + bias."""

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
        """`layer` quantised, on its device. It shares the bias, or has a zero bias."""
        weight = layer.weight.detach()
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
        return cls(quantize_rows(weight), bias)

    @property
    def out_features(self) -> int:
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
    """True if the device multiplies e4m3 in hardware: Ada (8.9), Hopper (9.0) and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
