"""Adapters (LoRA) of a picture model: their weights as files give them."""

from __future__ import annotations

from predictors.compute.low_rank import AdapterWeights, LowRank

__all__ = ["AdapterWeights", "LowRank"]
