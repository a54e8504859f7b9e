"""A decoded picture to the vision tower's patches with tensor operations alone: resize, normalise,
cut. Knows no file, no request and no device of its own.

As transformers' image processor does it with torchvision on the CPU: antialiased bicubic across and
then down, each rounded to whole levels within 0 .. 255, then `(level * rescale - mean) / std` and
patches group by group. Its weights are integers and ours are float32, so some levels differ, by at
most two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = 255.0
BICUBIC = 3  # as Pillow counts
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
        mean_and_std = torch.tensor((self.mean, self.std))
        return (mean_and_std * (1.0 / self.rescale))[:, :, None, None]

    def can_shrink(self, size: tuple[int, int], grid: tuple[int, int]) -> bool:
        """Whether a device's resize takes a picture of `size` (height, width) pixels to `grid`."""
        sides = zip(size, grid, strict=True)
        return all(side <= MOST_SHRINKING * self.patch * count for side, count in sides)


def recipe_of(processor: Any) -> Recipe | None:
    """What transformers' image processor of a checkpoint does, or None if it is something else."""
    usual = (processor.do_resize, processor.do_rescale, processor.do_normalize)
    if not all(usual) or int(processor.resample) != BICUBIC:
        return None
    return Recipe(
        tuple(processor.image_mean),
        tuple(processor.image_std),
        processor.rescale_factor,
        processor.patch_size,
        processor.merge_size,
    )


def resized(picture: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Levels (channels, rows * patch, columns * patch) float32, whole numbers, of `picture`
    (height, width, channels) uint8."""
    size = (grid[0] * patch, grid[1] * patch)
    levels = picture.permute(2, 0, 1)[None].to(torch.float32, memory_format=torch.contiguous_format)
    for height, width in ((picture.shape[0], size[1]), size):
        if levels.shape[2:] != (height, width):
            levels = F.interpolate(
                levels, (height, width), mode="bicubic", antialias=True, align_corners=False
            )
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
    values = values.permute(1, 4, 2, 5, 0, 3, 6)
    width = values.shape[4:].numel()
    out[:, :width].unflatten(0, values.shape[:4]).unflatten(4, values.shape[4:]).copy_(values)
    if width < out.shape[1]:
        out[:, width:].zero_()
    return out
