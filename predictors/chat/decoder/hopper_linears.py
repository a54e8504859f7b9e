"""A block's linears and the head in a decode step of 2 to 64 rows on Hopper, for bfloat16 weights;
those in fp8 stay with `few_rows`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from predictors.chat.decoder.few_rows import FewRowsLinears
from predictors.chat.decoder.layers import RMSNorm
from predictors.chat.decoder.operations import Layer, Wide
from predictors.compute.kernels import hopper_linear


class HopperLinears(FewRowsLinears):
    """Each linear, with its gate, and each norm before one is a chained kernel."""

    def normed_linear(self, x: Tensor, norm: RMSNorm, layer: Layer) -> Tensor:
        if not hopper_linear.takes(layer.weight):
            return super().normed_linear(x, norm, layer)
        return hopper_linear.linear(self.normed(x, norm), layer.weight, bias=layer.bias)

    def added_linear(self, stream: Tensor, x: Wide, layer: Layer) -> Tensor:
        """Overwrites the stream."""
        if not isinstance(x, Tensor) or not hopper_linear.takes(layer.weight):
            return super().added_linear(stream, x, layer)
        return hopper_linear.linear(x, layer.weight, residual=stream, out=stream)

    def gated_linear(self, x: Tensor, norm: RMSNorm, layer: Layer) -> Wide:
        if not hopper_linear.takes(layer.weight):
            return super().gated_linear(x, norm, layer)
        return hopper_linear.linear(self.normed(x, norm), layer.weight, is_gated=True)

    def logits(
        self, x: Tensor, norm: RMSNorm, head: nn.Linear, out: Tensor | None = None
    ) -> Tensor:
        if not hopper_linear.takes(head.weight):
            return super().logits(x, norm, head, out)
        if out is None:
            out = x.new_empty(len(x), len(head.weight), dtype=torch.float32)
        return hopper_linear.linear(self.normed(x, norm), head.weight, out=out)

    def normed(self, x: Tensor, norm: RMSNorm) -> Tensor:
        if not hopper_linear.normalizes(x):
            return super().normed(x, norm)
        return hopper_linear.norm(x, norm.weight, norm.eps)
