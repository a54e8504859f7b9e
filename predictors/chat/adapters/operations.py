"""A decoder block's operations with each row's adapters added to every linear, over those of
`decoder.operations` or `decoder.fused`.

The rows of a pass without an adapter get the bits that they get in a pass without adapters; only on
Hopper, up to 64 rows, last bits differ, since gate and up are rounded before the gate here. With
fp8 weights the adapters read the activations before they are quantised.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from predictors.chat.adapters.changes import RowChanges
from predictors.chat.decoder.layers import RMSNorm
from predictors.chat.decoder.operations import (
    Angles,
    GatedRows,
    HeadNorms,
    Layer,
    Operations,
    Stream,
    Wide,
    values_of,
)
from predictors.compute.kernels.fp8 import RowScaled


class StepwiseOperations(Operations, Protocol):
    """Operations whose norm and gate can be had apart from their linear."""

    def normed(self, x: Tensor, norm: RMSNorm) -> Tensor:
        """norm(x)."""

    def gated(self, wide: Tensor) -> Tensor:
        """silu(first half) * second half of wide (rows, 2 n)."""

    def narrowed(self, wide: Tensor, layer: Layer) -> RowScaled | None:
        """`gated` in fp8, if `gated_linear` of `layer` returns it so."""


class AdaptedOperations:
    """Implements `Operations`."""

    def __init__(self, ops: StepwiseOperations, changes: RowChanges) -> None:
        self._ops = ops
        self._changes = changes

    def normed_linear(self, x: Stream, norm: RMSNorm, layer: Layer) -> Tensor:
        out = self._ops.normed_linear(x, norm, layer)
        return self._changes.added(out, self._ops.normed(values_of(x), norm), layer)

    def attend(
        self, qkv: Tensor, angles: Angles, cache: Tensor, head_dim: int, norms: HeadNorms | None
    ) -> Tensor:
        return self._ops.attend(qkv, angles, cache, head_dim, norms)

    def added_linear(self, stream: Stream, x: Wide, layer: Layer, following: RMSNorm) -> Tensor:
        own, plain = (x.narrow, x.plain) if isinstance(x, GatedRows) else (x, x)
        assert isinstance(plain, Tensor)
        summed = values_of(self._ops.added_linear(stream, own, layer, following))
        return self._changes.added(summed, plain, layer)

    def gated_linear(self, x: Stream, norm: RMSNorm, layer: Layer) -> Wide:
        ungated = self.normed_linear(x, norm, layer)
        gated, narrow = self._ops.gated(ungated), self._ops.narrowed(ungated, layer)
        return gated if narrow is None else GatedRows(narrow, gated)

    def logits(
        self, x: Stream, norm: RMSNorm, head: nn.Linear, out: Tensor | None = None
    ) -> Tensor:
        return self._ops.logits(x, norm, head, out)
