"""Low-rank adapters (LoRA) of a picture model: their weights as the engine takes them, and the
names that requests may use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class LowRank:
    """The change of one linear: `up @ down` is added to its weight. Float32, on the host."""

    down: Tensor
    """(rank, in_features)."""
    up: Tensor
    """(out_features, rank), alpha / rank folded in."""

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """One adapter, every change checked against the checkpoint's shapes."""

    name: str
    digest: str
    """SHA-256 of what was read, in hexadecimal digits."""
    changes: Mapping[str, LowRank]
    """By diffusers' path of the module with its part in front, such as
    `transformer.transformer_blocks.0.attn.to_q`."""
