"""Boxes as callers get them, and the coordinates in which models say them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Convention = Literal["pixels", "normalized_1000"]
"""The coordinates that a model speaks in: pixels of the picture as read, or thousandths of its
sides."""


@dataclass(frozen=True, slots=True)
class PictureBox:
    """A box that an answer names: left, top, right and bottom in picture number `picture`."""

    picture: int
    label: str
    box: tuple[int, int, int, int]
