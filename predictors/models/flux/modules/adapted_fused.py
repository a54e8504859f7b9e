"""The fused operations with adapters: see `adapted.py`. The low-rank part is plain matmuls, with no
more launches for several rows than for one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from predictors.compute.kernels.fp8 import RowScaled
from predictors.models.flux.modules.adapted import Adapters
from predictors.models.flux.modules.fused import Attention, Fused, FusedFp8
from predictors.models.flux.modules.operations import (
    Activations,
    Layer,
    Operations,
    Streams,
    shared,
)


class AdaptedFused(Fused):
    """`Fused` with adapters. GELU follows in a pass of its own."""

    def __init__(self, attention: Attention, adapters: Adapters) -> None:
        super().__init__(attention)
        self._adapters = adapters

    def linear(self, x: Activations, layers: Streams[Layer], num_text: int) -> Tensor:
        return self._adapters.add(super().linear(x, layers, num_text), x, layers, num_text)

    def end(self, x: Tensor, layer: Layer) -> Tensor:
        return self._adapters.add(super().end(x, layer), x, shared(layer), 0)

    def _gelu_of(self, x: Tensor, up: Streams[Layer], num_text: int) -> Tensor:
        return torch.ops.aten.gelu_(self.linear(x, up, num_text), approximate="tanh")

    def _joined(self, mixed: Tensor, wide: Tensor, down: Layer) -> Tensor:
        out = super()._joined(mixed, wide, down)
        return self._adapters.add(out, (mixed, wide), shared(down), 0)


class AdaptedFusedFp8(FusedFp8):
    """`FusedFp8` with adapters. The low-rank part is not quantised, but reads the activations as
    the linear does, rounded to e4m3: no others are kept."""

    def __init__(
        self, attention: Attention, narrow_attention: Attention | None, adapters: Adapters
    ) -> None:
        super().__init__(attention, narrow_attention)
        self._adapters = adapters

    @property
    def unquantized(self) -> Operations:
        return AdaptedFused(self._attention, self._adapters)

    def linear(self, x: RowScaled, layers: Streams[Layer], num_text: int) -> Tensor:
        out = super().linear(x, layers, num_text)
        values = x.values.to(out.dtype)
        return self._adapters.add(out, values, layers, num_text, x.scales)
