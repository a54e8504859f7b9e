"""Pictures made into patches by tensor operations, beside transformers' own processor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from predictors.chat.pixel_bounds import PixelBounds
from predictors.chat.vision.pixels import (
    PatchFormat,
    PicturePreparation,
    cut,
    patch_format,
    resized,
)
from tests.chat.room import CHECKPOINT

SIZES = [  # height, width: smaller, larger, the same, one pixel, thin
    (224, 224), (500, 375), (375, 1000), (56, 84), (1, 1), (3, 150), (40, 2000), (1030, 1500),
]  # fmt: skip


@pytest.fixture(scope="module")
def processor() -> Any:
    """The checkpoint's."""
    return AutoProcessor.from_pretrained(CHECKPOINT, local_files_only=True).image_processor


@pytest.fixture(scope="module")
def recipe(processor: Any) -> PatchFormat:
    """The checkpoint's format."""
    found = patch_format(processor)
    assert found is not None
    return found


def picture_of(size: tuple[int, int], kind: str) -> Tensor:
    """(height, width, 3) uint8: hard noise, where bicubic overshoots, or a smooth picture."""
    generator = torch.Generator().manual_seed(sum(size))
    if kind == "noise":
        return torch.randint(0, 2, (*size, 3), generator=generator, dtype=torch.uint8) * 255
    y, x = torch.linspace(0, 9, size[0])[:, None], torch.linspace(0, 7, size[1])
    waves = [torch.sin(x + y), torch.cos(x - y), torch.sin(x * y / 9)]
    return (torch.stack(waves, -1) * 127 + 128).to(torch.uint8)


def theirs(processor: Any, picture: Tensor, max_pixels: int) -> tuple[Tensor, tuple[int, int]]:
    size = {"shortest_edge": 3136, "longest_edge": max_pixels}
    made = processor(
        images=[picture.permute(2, 0, 1).contiguous()], size=size,
        input_data_format="channels_first", return_tensors="pt",
    )  # fmt: skip
    pairs = made["pixel_values"].view(len(made["pixel_values"]), 3, 2, -1)
    return pairs[:, :, 0].flatten(1), tuple(made["image_grid_thw"][0].tolist()[1:])


def ours(picture: Tensor, grid: tuple[int, int], recipe: PatchFormat, spare: int = 0) -> Tensor:
    out = torch.full((grid[0] * grid[1], 588 + spare), float("nan"))
    return cut(resized(picture, grid, recipe.patch), recipe, recipe.levels(), out)


@pytest.mark.parametrize("kind", ["noise", "smooth"])
@pytest.mark.parametrize("size", SIZES)
def test_patches_are_those_of_transformers_but_for_rounding(
    processor: Any, recipe: PatchFormat, size: tuple[int, int], kind: str
) -> None:
    picture = picture_of(size, kind)
    exact, grid = theirs(processor, picture, 400_000)
    height, width = smart_resize(*size, 28, 3136, 400_000)
    assert grid == (height // 14, width // 14)
    levels = torch.tensor(recipe.std).repeat_interleave(14 * 14) / recipe.rescale
    apart = (ours(picture, grid, recipe) - exact).abs() * levels
    assert apart.mean() < 0.1
    assert apart.max() < 2.01


def test_a_picture_of_the_right_size_is_cut_exactly_as_by_transformers(
    processor: Any, recipe: PatchFormat
) -> None:
    picture = picture_of((84, 140), "noise")
    exact, grid = theirs(processor, picture, 400_000)
    assert torch.equal(ours(picture, grid, recipe), exact)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 5000),
    st.floats(1 / 200, 200),
    st.integers(1, 10**6),
    st.integers(784, 13 * 10**6),
)
def test_the_grid_of_every_budget_is_that_of_transformers(
    processor: Any, height: int, ratio: float, least: int, most: int
) -> None:
    width = max(1, round(height * ratio))
    preparation, bounds = PicturePreparation(processor), PixelBounds(min(least, most), most)
    asked = {"min_pixels": bounds.min_pixels, "max_pixels": most}
    try:
        expected = processor.get_number_of_image_patches(height, width, asked)
    except ValueError:  # more than 200 to 1
        with pytest.raises(ValueError, match="aspect ratio"):
            preparation.grid_of(height, width, bounds)
        return
    rows, columns = preparation.grid_of(height, width, bounds)
    assert rows * columns == expected
    assert rows % 2 == columns % 2 == 0


@pytest.mark.parametrize("most", [3136, 50_000, 262_144])
@pytest.mark.parametrize("size", [(500, 375), (56, 84), (40, 2000)])
def test_both_ways_give_transformers_patches_at_every_budget(
    processor: Any, recipe: PatchFormat, size: tuple[int, int], most: int
) -> None:
    picture, bounds = picture_of(size, "smooth"), PixelBounds(3136, most)
    preparation = PicturePreparation(processor)
    exact, grid = theirs(processor, picture, most)
    assert preparation.grid_of(*size, bounds) == grid
    values, layout = preparation.prepare(picture, bounds, grid, on_device=False)
    assert layout is None
    assert torch.equal(values, exact)
    values, layout = preparation.prepare(picture, bounds, grid, on_device=True)
    assert layout == recipe
    levels = torch.tensor(recipe.std).repeat_interleave(14 * 14) / recipe.rescale
    assert ((ours(values, grid, recipe) - exact).abs() * levels).max() < 2.01


def test_columns_that_no_patch_has_become_zero(recipe: PatchFormat) -> None:
    found = ours(picture_of((56, 84), "noise"), (4, 6), recipe, spare=4)
    assert not found[:, 588:].any()
    assert found.isfinite().all()


def test_a_processor_that_prepares_otherwise_has_no_recipe(processor: Any) -> None:
    for name, value in (("do_normalize", False), ("resample", 2), ("do_resize", False)):
        usual = getattr(processor, name)
        setattr(processor, name, value)
        try:
            assert patch_format(processor) is None
        finally:
            setattr(processor, name, usual)


def test_only_a_size_that_the_kernel_takes_is_shrunk(recipe: PatchFormat) -> None:
    assert recipe.can_shrink((32 * 14 * 2, 100), (2, 8))
    assert not recipe.can_shrink((32 * 14 * 2 + 1, 100), (2, 8))
    assert not recipe.can_shrink((100, 32 * 14 * 8 + 1), (2, 8))
    assert replace(recipe, patch=28).can_shrink((32 * 14 * 2 + 1, 100), (2, 8))
