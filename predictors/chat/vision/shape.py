"""Sizes that every vision tower has, and how they are read from a checkpoint's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from predictors.chat.decoder.rotary import inverse_frequencies

ROPE_THETA = 10000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerShape:
    """Sizes of a vision tower: `depth` blocks of `heads` over `hidden` features, and merge x merge
    patches become one token of `out` features. A model adds its own."""

    depth: int
    hidden: int
    heads: int
    mlp: int
    out: int
    patch: int
    temporal_patch: int
    channels: int
    merge: int
    rope_theta: float = ROPE_THETA

    @classmethod
    def of(cls, vision: Mapping[str, Any], **own: Any) -> Self:
        """The shape in a checked `vision_config` with all defaults; `own` are the model's fields.
        Raises `KeyError` for a value that is absent."""
        rope = vision.get("rope_parameters") or {}
        return cls(
            depth=vision["depth"],
            hidden=vision["hidden_size"],
            heads=vision["num_heads"],
            mlp=vision["intermediate_size"],
            out=vision["out_hidden_size"],
            patch=vision["patch_size"],
            temporal_patch=vision["temporal_patch_size"],
            channels=vision["in_channels"],
            merge=vision["spatial_merge_size"],
            rope_theta=float(rope.get("rope_theta", ROPE_THETA)),
            **own,
        )

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def patch_values(self) -> int:
        """Numbers per patch of a still picture: one frame, as both of a pair are the same."""
        return self.channels * self.patch * self.patch

    def frequencies(self) -> Tensor:
        """Rotary frequencies (head_dim / 4,) fp32: the same for rows and columns."""
        return inverse_frequencies(self.head_dim // 2, self.rope_theta)
