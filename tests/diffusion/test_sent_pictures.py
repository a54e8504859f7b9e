"""Callers' pictures become pixels at the size that is read, as diffusers makes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from predictors.diffusion.editing import Edits
from predictors.diffusion.limits import PictureLimits, make_limits
from predictors.diffusion.request import FILL, KONTEXT, ImageParameters
from predictors.diffusion.sent_pictures import (
    SentRow,
    SentSource,
    SourceReader,
    lanczos_resized,
    with_blank_source,
)
from predictors.errors import InvalidRequest, TooLarge
from predictors.models.flux.config import read_checkpoint
from predictors.protocol.images.decode import decode_mask, decode_pixels
from predictors.protocol.tasks import make_workers
from predictors.settings import FluxSettings, ImageLimits, ServerSettings
from predictors.workers.pool import Workers
from tests.diffusion.driver import CHECKPOINT

LIMITS = make_limits(read_checkpoint(CHECKPOINT)[0], FluxSettings())
IMAGES = ImageLimits()


def saved(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def noisy(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A picture whose every pixel differs from its neighbours."""
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    levels = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    return Image.fromarray(levels)


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    made = make_workers(ServerSettings(workers=2))
    yield made
    made.close()


def reader(
    limits: PictureLimits = LIMITS,
    workers: Workers | None = None,
    images: ImageLimits = IMAGES,
    seen: list[str] | None = None,
) -> SourceReader:
    async def off_loop(work: Callable[..., Any], *args: Any, is_large: bool = False) -> Any:
        if seen is not None:
            seen.append(getattr(work, "__name__", ""))
        return await asyncio.to_thread(work, *args)

    return SourceReader(limits, images, workers, off_loop)


async def read(source: SentSource, limits: PictureLimits = LIMITS, **asked: Any) -> ImageParameters:
    (found,), _ = await reader(limits).read([SentRow(ImageParameters("a", **asked), source)])
    return found


# -- pixels ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(64, 64), (48, 80), (200, 136), (101, 67)])
def test_pixels_are_those_of_diffusers_image_processor(size: tuple[int, int]) -> None:
    picture = noisy(101, 67)
    width, height = size
    ours = lanczos_resized(decode_pixels(saved(picture), IMAGES), size, 3)
    theirs = VaeImageProcessor(vae_scale_factor=1).preprocess(picture, height, width)
    scaled = torch.from_numpy(ours.astype(np.float32) / 255.0).permute(2, 0, 1)[None] * 2.0 - 1.0
    assert torch.equal(scaled, theirs)


@pytest.mark.parametrize("size", [(64, 64), (200, 136)])
def test_masks_are_those_of_diffusers_image_processor(size: tuple[int, int]) -> None:
    mask = noisy(101, 67, "L")
    width, height = size
    processor = VaeImageProcessor(
        vae_scale_factor=1, do_normalize=False, do_binarize=True, do_convert_grayscale=True
    )
    theirs = processor.preprocess(mask, height, width)[0, 0].numpy()
    ours = lanczos_resized(decode_mask(saved(mask), IMAGES), size)
    assert np.array_equal(ours >= 128, theirs == 1)


async def test_a_picture_is_read_at_its_own_size_in_whole_patches() -> None:
    found = await read(SentSource(saved(noisy(101, 67))))
    assert (found.width, found.height) == LIMITS.edit_size(None, None, (101, 67)) == (96, 64)
    assert found.source is not None
    assert found.source.pixels.shape == (64, 96, 3)
    assert found.source.mask is None


async def test_a_picture_is_resized_to_the_size_that_is_asked_for() -> None:
    picture, mask = noisy(60, 40), noisy(60, 40, "L")
    found = await read(SentSource(saved(picture), saved(mask)), width=128, height=64)
    assert (found.width, found.height) == (128, 64)
    assert found.source is not None
    assert found.source.mask is not None
    wanted = picture.resize((128, 64), Image.Resampling.LANCZOS)
    assert np.array_equal(found.source.pixels, np.asarray(wanted))
    assert found.source.mask.shape == (64, 128)


async def test_a_turned_photo_is_read_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = await read(SentSource(saved(noisy(96, 64), "JPEG", exif=exif)))
    assert (found.width, found.height) == (64, 96)


async def test_worker_processes_read_the_same(workers: Workers) -> None:
    source = SentSource(saved(noisy(101, 67)), saved(noisy(101, 67, "L")))
    row = SentRow(ImageParameters("a"), source)
    (here,), _ = await reader().read([row])
    (there,), sizes = await reader(workers=workers).read([row])
    assert sizes == [(101, 67)]
    assert here.source is not None
    assert there.source is not None
    assert here.source.mask is not None
    assert there.source.mask is not None
    assert np.array_equal(here.source.pixels, there.source.pixels)
    assert np.array_equal(here.source.mask, there.source.mask)


async def test_rows_that_share_a_picture_share_its_pixels() -> None:
    source, seen = SentSource(saved(noisy(64, 64))), list[str]()
    rows = [SentRow(ImageParameters("a", seed=i), source) for i in range(4)]
    found, sizes = await reader(seen=seen).read(rows)
    assert sizes == [(64, 64)]
    assert len(seen) == 2  # decoded and resized
    assert [row.seed for row in found] == [0, 1, 2, 3]
    assert len({id(row.source) for row in found}) == 1
    assert {row.width for row in found} == {64}


async def test_rows_without_a_picture_stay_as_they_are() -> None:
    asked = ImageParameters("a")
    assert await reader().read([SentRow(asked)]) == ([asked], [])


# -- refusals --------------------------------------------------------------------------------------
async def test_a_mask_of_another_size_is_refused_with_both_sizes() -> None:
    source = SentSource(saved(noisy(64, 48)), saved(noisy(48, 64, "L")), row=3)
    with pytest.raises(InvalidRequest, match="mask is 48x64 pixels and image 64x48") as caught:
        await read(source)
    assert (caught.value.param, caught.value.row) == ("mask", 3)


@pytest.mark.parametrize(
    ("source", "param", "reason"),
    [
        (SentSource(b"", image_field="image[0]"), "image[0]", "image.0. is empty"),
        (SentSource(b"GIF89a"), "image", "image is a GIF"),
        (SentSource(b"hello"), "image", "image is text"),
        (SentSource(saved(noisy(8, 8)), b"hello"), "mask", "mask is text"),
        (SentSource(saved(noisy(8, 8)), saved(noisy(9, 8))[:60]), "mask", "mask is"),
    ],
)
async def test_a_bad_file_is_refused_by_the_name_of_its_field(
    source: SentSource, param: str, reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        await read(source)
    assert caught.value.param == param


async def test_pictures_beyond_the_limits_are_refused_with_the_numbers(workers: Workers) -> None:
    small = ImageLimits(max_bytes=100)
    row = SentRow(ImageParameters("a"), SentSource(saved(noisy(64, 64))))
    with pytest.raises(TooLarge, match="at most 100 are taken"):
        await reader(images=small, workers=workers).read([row])
    poor = make_workers(ServerSettings(worker_memory_bytes=2**20))
    with pytest.raises(TooLarge, match="image: reading this takes about") as caught:
        await reader(workers=poor).read([row])
    assert caught.value.param == "image"
    poor.close()


def test_everything_but_the_size_is_checked_before_a_picture_is_decoded() -> None:
    row = SentRow(ImageParameters("a", strength=0.5), SentSource(b"never decoded", b""))
    checked = LIMITS.resolve(with_blank_source(LIMITS, row))
    assert (checked.width, checked.height) == (LIMITS.default_width, LIMITS.default_height)
    assert checked.strength == 0.5
    for wrong, reason in (
        ({"strength": 1.5}, "strength must be from 0 to 1"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"width": -16}, "width must be a multiple"),
        ({"height": 10**30}, "height must be a multiple"),
    ):
        asked = replace(row, parameters=ImageParameters("a", **wrong))  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match=reason):
            LIMITS.resolve(with_blank_source(LIMITS, asked))


@pytest.mark.parametrize(
    ("edits", "mask", "param", "reason"),
    [
        (Edits(), None, "image", "draws from text alone"),
        (Edits(FILL, is_loaded=True), None, "mask", "it needs a mask"),
        (Edits(KONTEXT, is_loaded=True), b"m", "mask", "without a mask"),
    ],
)
def test_a_checkpoint_that_can_not_edit_so_says_which_can(
    edits: Edits, mask: bytes | None, param: str, reason: str
) -> None:
    limits = replace(LIMITS, edits=edits)
    with pytest.raises(InvalidRequest, match=reason) as caught:
        with_blank_source(limits, SentRow(ImageParameters("a"), SentSource(b"i", mask)))
    assert caught.value.param == param
