"""Sizes of Qwen3-VL's vision tower, and everything that follows from a picture's grid alone.

A grid is `height` x `width` patches, both multiples of `merge`. Patches lie in the order of the
image preparation: group by group of merge x merge. The learned position table is square; a picture
reads it with bilinear interpolation between its corners, as transformers does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from predictors.chat.vision.shape import TowerShape

SIZES = 4
"""Integers of a packed grid after rows and columns: patches, height, width, and one unused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionShape(TowerShape):
    """`table_side` is the side of the learned position table. `deepstack` are the blocks,
    ascending, whose outputs go to the first decoder layers."""

    table_side: int
    deepstack: tuple[int, ...]

    @property
    def levels(self) -> int:
        """Features of one merged patch: its embedding, and one level per DeepStack block."""
        return 1 + len(self.deepstack)


class Grid(NamedTuple):
    """A grid as int64 tensors, for a pass over at least as many patches. `row`, `column`
    (patches,) say where each patch lies, 0 for rows beyond the picture; `real` (1,) is how many
    patches the picture has, `height` and `width` (1,) are its sides."""

    row: Tensor
    column: Tensor
    real: Tensor
    height: Tensor
    width: Tensor

    @classmethod
    def unpacked(cls, ints: Tensor, patches: int) -> Grid:
        """Views of `packed_grid`'s integers for a pass over `patches` patches."""
        row, column, real, height, width, _ = ints.split((patches, patches, 1, 1, 1, 1))
        return cls(row, column, real, height, width)


def num_packed(patches: int) -> int:
    return 2 * patches + SIZES


def packed_grid(height: int, width: int, patches: int, shape: VisionShape) -> Tensor:
    """A grid for a pass over `patches` >= height * width: int64 row on the CPU, see `Grid`."""
    merge, count = shape.merge, height * width
    blocks = (height // merge, width // merge, merge, merge)
    row = torch.arange(height).view(blocks[0], 1, merge, 1).expand(blocks)
    column = torch.arange(width).view(1, blocks[1], 1, merge).expand(blocks)
    ints = torch.zeros(num_packed(patches), dtype=torch.int64)
    ints[:count] = row.flatten()
    ints[patches : patches + count] = column.flatten()
    ints[2 * patches : 2 * patches + 3] = torch.tensor([count, height, width])
    return ints


def interpolated(table: Tensor, grid: Grid, side: int) -> Tensor:
    """Position embeddings (patches, hidden) fp32 of `grid`, read from `table` (side * side, hidden)
    at four places each. The table's corners are the picture's corners."""
    rows = _taps(grid.row, grid.height, side)
    columns = _taps(grid.column, grid.width, side)
    found = torch.zeros(len(grid.row), table.shape[1], dtype=torch.float32, device=table.device)
    for row, row_share in rows:
        for column, column_share in columns:
            values = table.index_select(0, row * side + column).to(torch.float32)
            found += values * (row_share * column_share)[:, None]
    return found


def _taps(index: Tensor, size: Tensor, side: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """The two places of a `side`-long axis between which each of `index` of `size` falls, and the
    share of each. In the arithmetic of transformers, so that shares agree in every bit."""
    source = index.to(torch.float32) * (side - 1) / (size - 1).clamp(min=1)
    floor = source.floor()
    lower = floor.to(torch.int64)
    places = (lower.clamp(max=side - 1), (lower + 1).clamp(max=side - 1))
    shares = ((1 - (source - floor - offset).abs()).clamp(min=0) for offset in (0, 1))
    return tuple(zip(places, shares, strict=True))
