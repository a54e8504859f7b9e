"""Relative distance of two tensors: the error measure of the accuracy sections."""

from __future__ import annotations

from torch import Tensor


def distance(one: Tensor, other: Tensor) -> float:
    """||one - other|| / ||other||, in float32."""
    other = other.float()
    return float((one.float() - other).norm() / other.norm())
