"""A decoded picture to the vision tower's patches with tensor operations alone: resize, normalise,
cut. Knows no file, no request and no device of its own.

As transformers' image processor does it with torchvision: antialiased bicubic in float32, rounded
to whole levels, `(level * rescale - mean) / std`, patches group by group. A device's own resize
rounds some levels the other way: at most one apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = 255.0
MOST_SHRINKING = 32.0
"""The CUDA kernel holds a pixel's weights in 48 KB of shared memory: 47 times is its end."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a checkpoint wants its pictures. `mean`, `std` per channel of levels times `rescale`;
    `patch` in pixels, `merge` in patches."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale: float
    patch: int
    merge: int

    def levels(self) -> Tensor:
        """(2, channels, 1, 1) fp32 on the CPU: what to subtract from a level, and to divide by
        then."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return torch.stack((mean / self.rescale, std / self.rescale))[:, :, None, None]

    def can_shrink(self, size: tuple[int, int], grid: tuple[int, int]) -> bool:
        """Whether a device's resize takes a picture of `size` (height, width) pixels to `grid`."""
        sides = zip(size, grid, strict=True)
        return all(side <= MOST_SHRINKING * self.patch * count for side, count in sides)


def resized(picture: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Levels (channels, rows * patch, columns * patch) float32, whole numbers, of `picture`
    (height, width, channels) uint8."""
    size = (grid[0] * patch, grid[1] * patch)
    levels = picture.permute(2, 0, 1)[None].to(torch.float32, memory_format=torch.contiguous_format)
    if levels.shape[2:] != size:
        levels = F.interpolate(levels, size, mode="bicubic", antialias=True, align_corners=False)
        levels = levels.round_().clamp_(0.0, LEVELS)
    return levels[0]


def cut(levels: Tensor, recipe: Recipe, scales: Tensor, out: Tensor) -> Tensor:
    """Fill `out` (patches, at least channels * patch * patch) with normalised patches of `levels`,
    group by group of merge x merge; what is left of a row becomes zero. `scales` are
    `recipe.levels()` on the device. Returns `out`.
    """
    patch, merge = recipe.patch, recipe.merge
    values = ((levels - scales[0]) / scales[1]).unflatten(1, (-1, merge, patch))
    values = values.unflatten(4, (-1, merge, patch))  # channel, row, merge, y, column, merge, x
    values = values.permute(1, 4, 2, 5, 0, 3, 6).flatten(0, 3).flatten(1)
    width = values.shape[1]
    out[:, :width] = values
    if width < out.shape[1]:
        out[:, width:] = 0
    return out
