"""Where a checkpoint's linears lie inside the packed layers that run: q, k and v in one, gate and
up in one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from predictors.chat.decoder.decoder import Block, Decoder
from predictors.compute.low_rank import LinearSizes


@dataclass(frozen=True, slots=True)
class LinearPlace:
    """One stored linear: the first outputs of part `part` of `layer`, which has these `sizes`. What
    the layer has beyond is padding, of zeros."""

    layer: nn.Module
    sizes: LinearSizes
    part: int = 0

    @classmethod
    def of(cls, layer: nn.Linear) -> LinearPlace:
        """The place of a linear that is a layer of its own."""
        return cls(layer, LinearSizes(layer.in_features, (layer.out_features,)))


LinearPlaces = Mapping[str, LinearPlace]
"""By the linear's name as the hub has it, without `.weight`."""


def mlp_places(
    prefix: str, gate_up: nn.Module, down: nn.Module, dim: int, wide: int
) -> dict[str, LinearPlace]:
    """The linears of a gated MLP from `dim` features to `wide`, padding included, and back."""
    packed = LinearSizes(dim, (wide, wide))
    return {
        f"{prefix}.gate_proj": LinearPlace(gate_up, packed, 0),
        f"{prefix}.up_proj": LinearPlace(gate_up, packed, 1),
        f"{prefix}.down_proj": LinearPlace(down, LinearSizes(wide, (dim,))),
    }


def decoder_places(decoder: Decoder) -> dict[str, LinearPlace]:
    """The linears of all blocks. Their layers may be fp8."""
    found: dict[str, LinearPlace] = {}
    hidden, mlp = decoder.shape.hidden, decoder.shape.mlp
    for i, block in enumerate(decoder.blocks):
        assert isinstance(block, Block)
        prefix, attention = f"model.layers.{i}", block.attention
        packed = LinearSizes(hidden, tuple(attention.widths))
        for part, name in enumerate("qkv"):
            place = LinearPlace(attention.qkv, packed, part)
            found[f"{prefix}.self_attn.{name}_proj"] = place
        mixed = LinearSizes(attention.widths[0], (hidden,))
        found[f"{prefix}.self_attn.o_proj"] = LinearPlace(attention.out, mixed)
        found |= mlp_places(f"{prefix}.mlp", block.mlp.gate_up, block.mlp.down, hidden, mlp)
    return found
