"""Layout of a grid of patches for Qwen2.5-VL's vision tower: sizes, windows, orders and places.

Everything that depends only on the grid is computed here on the CPU, once per grid: as a `GridPlan`
for plain torch, where incomplete windows are padded around attention only, or as one row of
integers (`packed_grid`) of a fixed length, so that any grid of a bucket fits one captured pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from predictors.chat.decoder.rotary import vision_table
from predictors.chat.vision.shape import TowerShape


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionShape(TowerShape):
    """`window` is in pixels, `full_blocks` attend across windows."""

    window: int
    full_blocks: frozenset[int]

    @property
    def side(self) -> int:
        """Groups of patches along a whole window."""
        return self.window // self.merge // self.patch

    @property
    def window_patches(self) -> int:
        return (self.side * self.merge) ** 2

    @property
    def padded_mlp(self) -> int:
        """`mlp` rounded up to 64: 3420 is no multiple of 8, as the fast GPU kernels need it."""
        return -(-self.mlp // 64) * 64


@dataclass(frozen=True, slots=True)
class GridPlan:
    """Layout of one grid for the plain form. All tensors on the tower's device.

    `order` (merged,) int64 puts groups of merge x merge patches into window order, `back` undoes
    it; `cos`, `sin` (patches, head_dim) in window order; `gather` (windows * slots,) int64 picks
    each window's patches and `scatter` (patches,) int64 takes them back; `mask` (windows, 1, 1,
    slots) bool marks real ones. `gather`, `scatter` and `mask` are None when all windows are full.
    """

    order: Tensor
    back: Tensor
    cos: Tensor
    sin: Tensor
    slots: int
    gather: Tensor | None
    scatter: Tensor | None
    mask: Tensor | None

    def moved(self, move: Callable[[Tensor], Tensor]) -> GridPlan:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: move(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **moved)  # type: ignore[arg-type]


class Arrangement(NamedTuple):
    """A grid in window order; int64 on the CPU. `order` (merged,) picks groups of merge x merge
    patches, `patches` (patches,) single ones; `row` and `column` (patches,) say where each lies;
    `lengths` (windows,) are in patches."""

    order: Tensor
    patches: Tensor
    row: Tensor
    column: Tensor
    lengths: Tensor


def arrange(height: int, width: int, shape: VisionShape) -> Arrangement:
    """`height` x `width` patches, both multiples of `shape.merge`, window by window."""
    merge, side = shape.merge, shape.side
    rows, columns = height // merge, width // merge
    index = torch.arange(rows * columns).view(rows, columns)
    windows = [part.flatten() for band in index.split(side) for part in band.split(side, dim=1)]
    order = torch.cat(windows)
    row, column = _patch_places(rows, columns, merge)
    patches = (order[:, None] * merge**2 + torch.arange(merge**2)).flatten()
    lengths = torch.tensor([len(window) * merge**2 for window in windows])
    return Arrangement(order, patches, row[patches], column[patches], lengths)


def plan_grid(height: int, width: int, shape: VisionShape) -> GridPlan:
    """The plan for `height` x `width` patches, on the CPU. Both are multiples of `shape.merge`."""
    order, patches, row, column, lengths = arrange(height, width, shape)
    cos, sin = vision_table(row, column, shape.frequencies())
    if len(lengths) == 1:  # smaller than a window: dense as it is
        return GridPlan(order, order.argsort(), cos, sin, len(patches), None, None, None)
    slots = shape.window_patches
    padding = _padding(lengths, slots) if bool((lengths < slots).any()) else (None, None, None)
    return GridPlan(order, order.argsort(), cos, sin, slots, *padding)


def _patch_places(rows: int, columns: int, merge: int) -> tuple[Tensor, Tensor]:
    """Row and column of each patch, group by group as the image preparation writes them."""
    row = torch.arange(rows * merge).view(rows, 1, merge, 1).expand(rows, columns, merge, merge)
    column = torch.arange(columns * merge).view(1, columns, 1, merge)
    return row.flatten(), column.expand(rows, columns, merge, merge).flatten()


def _padding(lengths: Tensor, slots: int) -> tuple[Tensor, Tensor, Tensor]:
    starts = lengths.cumsum(0) - lengths
    lane = torch.arange(slots)
    real = lane < lengths[:, None]  # (windows, slots)
    gather = torch.where(real, starts[:, None] + lane, starts[:, None])  # padding repeats a patch
    scatter = real.flatten().nonzero().flatten()
    return gather.flatten(), scatter, real[:, None, None, :]


class PackedGrid(NamedTuple):
    """The parts of `packed_grid`'s integers. `order` (patches,), `row`, `column` (patches,),
    `back` (merged,), `starts`, `lengths` (windows,) in patches, negative of rows that are no
    patches, `real` (1,) how many patches are."""

    order: Tensor
    row: Tensor
    column: Tensor
    back: Tensor
    starts: Tensor
    lengths: Tensor
    real: Tensor

    @classmethod
    def unpacked(cls, ints: Tensor, patches: int, shape: VisionShape) -> PackedGrid:
        return cls(*ints.split(_packed_sizes(patches, shape)))


def _packed_sizes(patches: int, shape: VisionShape) -> tuple[int, ...]:
    merged = patches // shape.merge**2
    windows = most_windows(merged, shape.side) + 1  # the padding begins one of its own
    windows += windows % 2  # each part begins at 16 bytes: kernels are compiled for alignments
    return (patches, patches, patches, merged, windows, windows, 1)


def most_windows(merged: int, side: int) -> int:
    """No grid of up to `merged` groups is cut into more windows of `side` x `side`: a x b windows
    take at least (side (a - 1) + 1)(side (b - 1) + 1) > side (a b - 1) groups."""
    return -(-merged // side)


def num_packed(patches: int, shape: VisionShape) -> int:
    return sum(_packed_sizes(patches, shape))


def packed_grid(height: int, width: int, patches: int, shape: VisionShape) -> Tensor:
    """`height` x `width` patches for a pass over `patches` >= height * width, one row of int64 on
    the CPU, see `PackedGrid`. Rows beyond the grid stay where they are; windows of negative
    length are theirs, windows beyond are empty."""
    grid, parts = arrange(height, width, shape), []
    count = height * width
    tail = torch.arange(count, patches, shape.window_patches)
    spans = (patches - tail).clamp(max=shape.window_patches)
    starts = torch.cat((grid.lengths.cumsum(0) - grid.lengths, tail))
    lengths = torch.cat((grid.lengths, -spans))
    given = (*grid[1:4], grid.order.argsort(), starts, lengths, torch.tensor([count]))
    stays = (True, False, False, True, False, False, False)
    for values, size, stay in zip(given, _packed_sizes(patches, shape), stays, strict=True):
        part = torch.arange(size) if stay else torch.zeros(size, dtype=torch.int64)
        part[: len(values)] = values
        parts.append(part)
    return torch.cat(parts)
