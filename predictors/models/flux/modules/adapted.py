"""The operations of a transformer whose linears have adapters, and adapters of other modules.

Each adapted form does what its base does and then adds the low-rank part, before a GELU where one
follows. Inside of the step a row's adapters come from device tables; a module that runs once per
prompt or per picture gets them by forward hooks, while it runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from predictors.compute.kernels.fp8 import RowScaled, dequantized
from predictors.compute.low_rank import LowRankTable, RankRows, add_low_rank
from predictors.diffusion.adapters import AppliedChange
from predictors.models.flux.modules.operations import (
    Activations,
    Layer,
    Operations,
    Plain,
    PlainFp8,
    Streams,
)


class Adapters(NamedTuple):
    """The adapters of the rows of one pass."""

    tables: Mapping[Any, LowRankTable]
    """By the linear."""
    chosen: RankRows

    def add(
        self,
        out: Tensor,
        x: Tensor | tuple[Tensor, ...],
        layers: Streams[Layer],
        num_text: int,
        token_scales: Tensor | None = None,
    ) -> Tensor:
        """`out` (rows, tokens, out), the output of `layers` for `x`, with the low-rank part added
        in place."""
        if layers.are_one:
            add_low_rank(out, x, self.tables[layers.image], self.chosen, token_scales)
            return out
        assert isinstance(x, Tensor)  # only the linear of a one-stream block reads pieces
        for tokens, layer in (
            (slice(num_text), layers.text),
            (slice(num_text, None), layers.image),
        ):
            scales = None if token_scales is None else token_scales[:, tokens]
            add_low_rank(out[:, tokens], x[:, tokens], self.tables[layer], self.chosen, scales)
        return out


class AdaptedPlain(Plain):
    """`Plain` with adapters."""

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters

    def linear(self, x: Activations, layers: Streams[Layer], num_text: int) -> Tensor:
        return self._adapters.add(super().linear(x, layers, num_text), x, layers, num_text)

    def end(self, x: Tensor, layer: Layer) -> Tensor:
        return self._adapters.add(super().end(x, layer), x, Streams(layer, layer), 0)


class AdaptedPlainFp8(PlainFp8):
    """`PlainFp8` with adapters. The low-rank part is not quantised, but reads the activations as
    the linear does, rounded to e4m3: no others are kept."""

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters

    @property
    def unquantized(self) -> Operations:
        return AdaptedPlain(self._adapters)

    def linear(self, x: RowScaled, layers: Streams[Layer], num_text: int) -> Tensor:
        out = super().linear(x, layers, num_text)
        return self._adapters.add(out, dequantized(x), layers, num_text)


# -- outside of the step ---------------------------------------------------------------------------
@contextmanager
def adapted(modules: Mapping[str, nn.Module], changes: Sequence[AppliedChange]) -> Iterator[None]:
    """While inside, the linears of `modules` have these changes. Engine thread only: calls from
    another thread would have them too.

    A change names its linear as `MODULE.PATH`. The weights stay as they are.
    """
    by_linear: defaultdict[str, list[AppliedChange]] = defaultdict(list)
    for change in changes:
        by_linear[change.place.linear].append(change)
    with ExitStack() as stack:
        for linear, own in by_linear.items():
            module, _, path = linear.partition(".")
            if module in modules:
                layer = modules[module].get_submodule(path)
                stack.enter_context(_hooked(layer, own))
        yield


@contextmanager
def _hooked(layer: nn.Module, changes: Sequence[AppliedChange]) -> Iterator[None]:
    handle = layer.register_forward_hook(partial(_add_changes, changes))
    try:
        yield
    finally:
        handle.remove()


def _add_changes(
    changes: Sequence[AppliedChange], layer: nn.Module, inputs: tuple[Tensor], output: Tensor
) -> None:
    (x,) = inputs
    for change in changes:
        place, weights = change.place, change.weights
        down, up = (
            side.to(x.device, non_blocking=True).to(x.dtype) for side in (weights.down, weights.up)
        )
        added = torch.mul(x @ down.t(), change.scale) @ up.t()
        output[..., place.begin : place.begin + place.out_features].add_(added)
