"""A block's linears and the head in a decode step of up to 64 rows on Hopper, for bfloat16 weights;
those in fp8 stay with `few_rows`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from predictors.chat.decoder.few_rows import FewRowsLinears
from predictors.chat.decoder.layers import RMSNorm
from predictors.chat.decoder.operations import Layer, Stream, WeightedStream, Wide, values_of
from predictors.compute.kernels import hopper_linear


class HopperLinears(FewRowsLinears):
    """Each linear is a chained kernel, with its gate and its part of the norm before or after
    it."""

    def normed_linear(self, x: Stream, norm: RMSNorm, layer: Layer) -> Tensor:
        if not self._chains(x, layer):
            return super().normed_linear(x, norm, layer)
        weighted = self._weighted(x, norm)
        return hopper_linear.normed_linear(weighted, norm.eps, layer.weight, bias=layer.bias)

    def added_linear(self, stream: Stream, x: Wide, layer: Layer, following: RMSNorm) -> Stream:
        """Overwrites the stream."""
        if not isinstance(x, Tensor) or not self._chains(stream, layer):
            return super().added_linear(stream, x, layer, following)
        values = values_of(stream)
        weighted = hopper_linear.added_linear(x, layer.weight, values, following.weight)
        return WeightedStream(values, following, weighted)

    def gated_linear(self, x: Stream, norm: RMSNorm, layer: Layer) -> Wide:
        if not self._chains(x, layer):
            return super().gated_linear(x, norm, layer)
        weighted = self._weighted(x, norm)
        return hopper_linear.normed_linear(weighted, norm.eps, layer.weight, is_gated=True)

    def logits(
        self, x: Stream, norm: RMSNorm, head: nn.Linear, out: Tensor | None = None
    ) -> Tensor:
        if not self._chains(x, head):
            return super().logits(x, norm, head, out)
        if out is None:
            rows = len(values_of(x))
            out = head.weight.new_empty(rows, len(head.weight), dtype=torch.float32)
        weighted = self._weighted(x, norm)
        return hopper_linear.normed_linear(weighted, norm.eps, head.weight, out=out)

    def normed(self, x: Tensor, norm: RMSNorm) -> Tensor:
        if not hopper_linear.normalizes(x):
            return super().normed(x, norm)
        return hopper_linear.norm(x, norm.weight, norm.eps)

    def _chains(self, stream: Stream, layer: Layer) -> bool:
        is_normalized = hopper_linear.normalizes(values_of(stream))
        return is_normalized and hopper_linear.takes(layer.weight)

    def _weighted(self, stream: Stream, norm: RMSNorm) -> hopper_linear.Weighted:
        if isinstance(stream, WeightedStream) and stream.norm is norm:
            return stream.weighted
        return hopper_linear.weighted(values_of(stream), norm.weight)
