"""A decoded picture to the patches that a vision encoder reads: resize, normalise, cut.

On the CPU it is done with torchvision's resize of uint8, which is torch's, and the operations of
transformers' image processor, so that patches are those of training, to the bit. For a GPU the same
is done with tensor operations: antialiased bicubic across and then down, each rounded
to whole levels within 0 .. 255, then `(level * rescale - mean) / std`. torchvision's weights are
integers and these are float32, so some levels differ, by at most two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from predictors.chat.pixel_bounds import PixelBounds

LEVELS = 255.0
BICUBIC = 3  # as Pillow counts
MOST_RATIO = 200  # of a picture's sides
DEFAULT_MAX_PIXELS = 28 * 28 * 1408
"""Pictures of 2**20 pixels are not shrunk: rounded to whole tokens, they have at most so many. The
5,632 patches of 14x14 fill a graph (`vision.pictures`). The hub's files allow 12,845,056."""
MOST_SHRINKING = 32.0
"""The CUDA kernel holds a pixel's weights in 48 KB of shared memory: 47 times is its end."""


@dataclass(frozen=True, slots=True)
class PatchFormat:
    """How a GPU makes patches of a picture. `mean`, `std` per channel of levels times `rescale`;
    `patch` in pixels, `merge` in patches."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale: float
    patch: int
    merge: int

    def levels(self) -> Tensor:
        """(2, channels, 1, 1) fp32 on the CPU: subtracted from a level, and divided by then."""
        mean_and_std = torch.tensor((self.mean, self.std))
        return (mean_and_std * (1.0 / self.rescale))[:, :, None, None]

    def can_shrink(self, size: Sequence[int], grid: tuple[int, int]) -> bool:
        """True if a device's resize can shrink a picture of `size` (height, width) to `grid`."""
        sides = zip(size, grid, strict=True)
        return all(side <= MOST_SHRINKING * self.patch * count for side, count in sides)


@dataclass(frozen=True, slots=True)
class PreparedPicture:
    """One picture, ready for the device; `grid` in patches (rows, columns).

    `values` are patches (patches, channels * patch * patch) fp32, or with a `format` the decoded
    picture (height, width, channels) uint8, of which the device makes patches. `key` names the
    file, the grid and the format; `pixels` is the area of the file's picture, and `file_size` its
    width and height, upright.

    With `frames` 2 this is a step of a film: patches have the values of the first frame and then
    of the second, or two pictures (2, height, width, channels) of the grid's size.
    """

    key: bytes
    grid: tuple[int, int]
    pixels: int
    values: Tensor = field(repr=False)
    format: PatchFormat | None = None
    file_size: tuple[int, int] = (0, 0)
    frames: int = 1


class PicturePreparation:
    """Prepares pictures as transformers' `Qwen2VLImageProcessor` of a checkpoint does. Thread-safe.

    `bounds` are the checkpoint's own. `images` are its settings if they are usual, or the processor
    itself.
    """

    def __init__(self, images: Any) -> None:
        self.patch = int(images.patch_size)
        self.merge = int(images.merge_size)
        edges = images.size  # areas, in spite of their names
        self.bounds = PixelBounds(int(edges["shortest_edge"]), int(edges["longest_edge"]))
        self._temporal = int(images.temporal_patch_size)
        self._images = images
        self._format = patch_format(images)

    def grid_of(self, height: int, width: int, bounds: PixelBounds) -> tuple[int, int]:
        """Patches (rows, columns) of a picture once it is resized, as transformers does it: sides
        are rounded to whole tokens, so very thin pictures may miss the bounds.

        Raises `ValueError` for a picture that it refuses.
        """
        factor = self.patch * self.merge
        size = fitted_size(height, width, factor, bounds.min_pixels, bounds.max_pixels)
        return size[0] // self.patch, size[1] // self.patch

    def prepare(
        self, picture: Tensor, bounds: PixelBounds, grid: tuple[int, int], *, on_device: bool
    ) -> tuple[Tensor, PatchFormat | None]:
        """Values and format of `picture` (height, width, 3) uint8, see `PreparedPicture`. `grid` is
        `grid_of`'s. Without `on_device` the patches are made here, else the picture itself is
        returned."""
        can_shrink = self._format is not None and self._format.can_shrink(picture.shape[:2], grid)
        if on_device and can_shrink:
            return picture, self._format
        if self._format is not None:
            levels = resized_exactly(picture.permute(2, 0, 1)[None], grid, self.patch)[0]
            return patches_of(levels, self._format), None
        made = self._images(
            images=[picture.permute(2, 0, 1)],
            size={"shortest_edge": bounds.min_pixels, "longest_edge": bounds.max_pixels},
            input_data_format="channels_first",
            return_tensors="pt",
        )
        pairs = made["pixel_values"].view(grid[0] * grid[1], -1, self._temporal, self.patch**2)
        # both frames of a still picture are the same: one is enough
        return pairs[:, :, 0].flatten(1).contiguous(), None


def fitted_size(height: int, width: int, factor: int, least: float, most: float) -> tuple[int, int]:
    """Sides of a picture in multiples of `factor`, of an area from `least` to `most` as far as that
    is possible: `smart_resize` of transformers' image processor of Qwen2-VL. Raises `ValueError`
    for sides too far apart."""
    return fitted_film_size(1, height, width, 1, factor, least, most)


def fitted_film_size(
    frames: int, height: int, width: int, step: int, factor: int, least: float, most: float
) -> tuple[int, int]:
    """As `fitted_size`, of `frames` together, in steps of `step`: `smart_resize` of
    transformers' newest video processor, but that small sides are not enlarged first."""
    ratio = max(height, width) / min(height, width)
    if ratio > MOST_RATIO:
        raise ValueError(f"absolute aspect ratio must be smaller than {MOST_RATIO}, got {ratio}")
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    area = round(frames / step) * step * rows * columns
    if area > most:
        shrink = math.sqrt((frames * height * width) / most)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif area < least:
        grow = math.sqrt(least / (frames * height * width))
        rows = math.ceil(height * grow / factor) * factor
        columns = math.ceil(width * grow / factor) * factor
    return rows, columns


def patch_format(images: Any) -> PatchFormat | None:
    """The format of transformers' image processor; None if it works differently."""
    usual = (images.do_resize, images.do_rescale, images.do_normalize)
    if not all(usual) or int(images.resample) != BICUBIC:
        return None
    return PatchFormat(
        tuple(images.image_mean),
        tuple(images.image_std),
        images.rescale_factor,
        images.patch_size,
        images.merge_size,
    )


def resized_exactly(pictures: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """`pictures` uint8 (count, channels, height, width) on the CPU, resized to a grid's size in
    integers, as torchvision does it."""
    size = (grid[0] * patch, grid[1] * patch)
    if tuple(pictures.shape[2:]) == size:
        return pictures
    return F.interpolate(pictures, size, mode="bicubic", antialias=True, align_corners=False)


def patches_of(levels: Tensor, layout: PatchFormat) -> Tensor:
    """Normalised patches (patches, channels * patch * patch) fp32 of whole `levels` (channels,
    height, width) uint8 on the CPU."""
    pixels = layout.patch**2
    out = torch.empty(levels[0].numel() // pixels, len(levels) * pixels)
    return cut(levels.float(), layout, layout.levels(), out)


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


def cut(levels: Tensor, layout: PatchFormat, scales: Tensor, out: Tensor) -> Tensor:
    """Fill `out` (patches, at least channels * patch * patch) with normalised patches of `levels`,
    group by group of merge x merge; the rest of a row becomes zero. `scales` are
    `layout.levels()` on the device. Returns `out`."""
    patch, merge = layout.patch, layout.merge
    values = ((levels - scales[0]) / scales[1]).unflatten(1, (-1, merge, patch))
    values = values.unflatten(4, (-1, merge, patch))  # channel, row, merge, y, column, merge, x
    values = values.permute(1, 4, 2, 5, 0, 3, 6)
    width = values.shape[4:].numel()
    out[:, :width].unflatten(0, values.shape[:4]).unflatten(4, values.shape[4:]).copy_(values)
    if width < out.shape[1]:
        out[:, width:].zero_()
    return out
