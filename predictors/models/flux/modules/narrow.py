"""Linears in fp8 that quantise their own input, for layers that no fused kernel precedes: those of
T5, and the modulation of all blocks. Half the bytes of bfloat16.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predictors.compute.kernels.fp8 import RowScaled, dequantized, quantize_rows
from predictors.models.flux.modules.conditioning import Conditioning
from predictors.models.flux.modules.text_encoders import T5TextEncoder


class QuantizingLinear(nn.Module):
    """As `Fp8Linear`, but takes and gives (..., features) in any float dtype."""

    weight: Tensor
    """e4m3 (out, in)."""
    weight_scale: Tensor
    """float32 (out, 1)."""
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = quantize_rows(layer.weight.detach())
        self.register_buffer("weight", weight.values)
        self.register_buffer("weight_scale", weight.scales)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            return self._scaled_product(x)
        weight = dequantized(RowScaled(self.weight, self.weight_scale))
        bias = None if self.bias is None else self.bias.float()
        return F.linear(dequantized(quantize_rows(x)), weight, bias).to(x.dtype)

    def _scaled_product(self, x: Tensor) -> Tensor:
        from predictors.models.flux.modules.fused import narrow_rows  # needs Triton

        narrow = narrow_rows(x.flatten(0, -2))
        out: Tensor = torch._scaled_mm(
            narrow.values,
            self.weight.t(),
            scale_a=narrow.scales,
            scale_b=self.weight_scale.t(),
            bias=None if self.bias is None else self.bias.to(torch.bfloat16),
            out_dtype=torch.bfloat16,  # the only one that scales by row give
            use_fast_accum=True,
        )
        rows = x.shape[:-1]
        return out[: rows.numel()].view(*rows, -1).to(x.dtype)


def narrow_t5(t5: T5TextEncoder) -> None:
    """Replace the linears of all blocks; embeddings and norms stay."""
    for path, layer in list(t5.encoder.block.named_modules()):
        if isinstance(layer, nn.Linear):
            t5.encoder.block.set_submodule(path, QuantizingLinear(layer))


def narrow_modulation(conditioning: Conditioning) -> None:
    """Replace the modulation, 98 % of the weights of FLUX.1's conditioning."""
    conditioning.set_submodule("modulation", QuantizingLinear(conditioning.modulation))
