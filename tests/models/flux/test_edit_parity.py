"""Edits against diffusers' own pipelines, in float32 from the same noise and samples of the
posterior: the same latents, the same picture.

diffusers draws the posterior's sample before the noise, from one generator; here the noise comes
first, so that strength 1 is text to image. So both are given to its pipelines.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextPipeline,
    FluxPipeline,
)
from PIL import Image

from predictors.diffusion.request import ImageParameters, ImageRequest
from tests.diffusion.driver import EngineDriver, open_driver
from tests.models.flux.edited import given, make_fill, make_kontext, masked, picture
from tests.models.flux.test_parity import TOLERANCE, call_of, relative_error

IMAGE = ImageParameters("a large red circle", num_inference_steps=6, seed=3)
CFG = {"negative_prompt": "blue", "true_cfg_scale": 2.5}


@pytest.fixture(scope="module")
def fill(tmp_path_factory: pytest.TempPathFactory) -> tuple[EngineDriver, FluxFillPipeline]:
    folder = make_fill(tmp_path_factory.mktemp("fill") / "fill")
    pipeline = FluxFillPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return open_driver(folder), pipeline


@pytest.fixture(scope="module")
def kontext(
    tmp_path_factory: pytest.TempPathFactory, pipeline: FluxPipeline
) -> tuple[EngineDriver, FluxKontextPipeline]:
    folder: Path = make_kontext(tmp_path_factory.mktemp("kontext") / "kontext")
    theirs = FluxKontextPipeline(**pipeline.components)
    theirs.set_progress_bar_config(disable=True)
    return open_driver(folder), theirs


def noise_of(request: ImageRequest) -> torch.Tensor:
    """The noise of the latents, as diffusers draws it: (1, 16, height / 8, width / 8)."""
    shape = (1, 16, request.height // 8, request.width // 8)
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(request.seed))


def drawn_by(
    pipeline: Any, driver: EngineDriver, image: ImageParameters, **more: Any
) -> torch.Tensor:
    """The latents that `pipeline` draws for the request."""
    request = driver.limits.resolve(image)
    work = driver.job(image).work
    assert work.source is not None
    assert request.source is not None
    call = call_of(request) | {"image": Image.fromarray(request.source.pixels)}
    if request.source.mask is not None:
        call["mask_image"] = Image.fromarray(request.source.mask)
    samples = [each.sample for each in work.source.encodings.values()]
    with given(pipeline, noise_of(request), samples):
        return pipeline(**(call | more), output_type="latent").images[0]


IMAGE_TO_IMAGE = {
    "default strength": replace(IMAGE, source=picture()),
    "low strength": replace(IMAGE, source=picture(), strength=0.2),
    "rounded": replace(IMAGE, source=picture(), strength=0.55, num_inference_steps=9),
    "oblong": replace(IMAGE, source=picture(96, 64), strength=0.7, seed=2**40),
    "true CFG": replace(IMAGE, source=picture(), strength=0.5, **CFG),
}


@pytest.mark.parametrize("case", IMAGE_TO_IMAGE)
def test_image_to_image_equals_the_pipelines(
    case: str, driver: EngineDriver, pipeline: FluxPipeline
) -> None:
    theirs = FluxImg2ImgPipeline(**pipeline.components)
    theirs.set_progress_bar_config(disable=True)
    image = IMAGE_TO_IMAGE[case]
    strength = driver.limits.resolve(image).strength
    expected = drawn_by(theirs, driver, image, strength=strength)
    assert relative_error(driver.latents(image), expected) <= TOLERANCE


INPAINTING = {
    "default strength": replace(IMAGE, source=masked(picture())),
    "strength 1": replace(IMAGE, source=masked(picture()), strength=1.0),
    "oblong": replace(IMAGE, source=masked(picture(96, 64)), strength=0.3),
    "true CFG": replace(IMAGE, source=masked(picture()), strength=0.8, **CFG),
}


@pytest.mark.parametrize("case", INPAINTING)
def test_inpainting_equals_the_pipelines(
    case: str, driver: EngineDriver, pipeline: FluxPipeline
) -> None:
    theirs = FluxInpaintPipeline(**pipeline.components)
    theirs.set_progress_bar_config(disable=True)
    image = INPAINTING[case]
    strength = driver.limits.resolve(image).strength
    # it also encodes the masked picture, which a transformer of 64 channels does not read
    height, width = driver.limits.resolve(image).height, driver.limits.resolve(image).width
    unread = torch.zeros(1, 16, height // 8, width // 8)
    expected = drawn_by(theirs, driver, image, strength=strength, masked_image_latents=unread)
    assert relative_error(driver.latents(image), expected) <= TOLERANCE


FILLS = {
    "defaults": replace(IMAGE, source=masked(picture())),
    "oblong": replace(IMAGE, source=masked(picture(64, 96)), guidance_scale=7.0),
    "strength": replace(IMAGE, source=masked(picture()), strength=0.6),
}


@pytest.mark.parametrize("case", FILLS)
def test_fill_equals_the_pipelines(case: str, fill: tuple[EngineDriver, FluxFillPipeline]) -> None:
    driver, theirs = fill
    image = FILLS[case]
    request = driver.limits.resolve(image)
    assert request.guidance_scale == (image.guidance_scale or 30.0)
    expected = drawn_by_fill(theirs, driver, image)
    assert relative_error(driver.latents(image), expected) <= TOLERANCE


def drawn_by_fill(
    pipeline: FluxFillPipeline, driver: EngineDriver, image: ImageParameters
) -> torch.Tensor:
    """Fill's pipeline encodes the whole picture also at strength 1, where nothing is left of it."""
    job = driver.job(replace(image, strength=0.5))
    assert job.work.source is not None
    samples = [each.sample for each in job.work.source.encodings.values()]
    request = driver.limits.resolve(image)
    assert request.source is not None
    assert request.source.mask is not None
    call = call_of(request) | {"strength": request.strength}
    call["image"] = Image.fromarray(request.source.pixels)
    call["mask_image"] = Image.fromarray(request.source.mask)
    with given(pipeline, noise_of(request), samples):
        return pipeline(**call, output_type="latent").images[0]


def sized(driver: EngineDriver, width: int, height: int, of: tuple[int, int]) -> ImageParameters:
    """An edit that draws width x height, of a picture of another size."""
    source = picture(*driver.limits.source_size((width, height), of))
    return replace(IMAGE, width=width, height=height, source=source)


@pytest.mark.parametrize(
    ("size", "of", "more"),
    [
        ((64, 64), (640, 640), {}),
        ((96, 64), (300, 500), {}),
        ((64, 64), (500, 300), CFG),
    ],
    ids=["square", "oblong", "true CFG"],
)
def test_kontext_equals_the_pipelines(
    size: tuple[int, int],
    of: tuple[int, int],
    more: dict[str, Any],
    kontext: tuple[EngineDriver, FluxKontextPipeline],
) -> None:
    driver, theirs = kontext
    image = replace(sized(driver, *size, of), **more)
    own = {"max_area": size[0] * size[1], "_auto_resize": False}
    expected = drawn_by(theirs, driver, image, **own)
    assert expected.shape == (size[0] * size[1] // 256, 64)
    assert relative_error(driver.latents(image), expected) <= TOLERANCE


def test_a_kontext_checkpoint_draws_from_text_alone_as_before(
    driver: EngineDriver, kontext: tuple[EngineDriver, FluxKontextPipeline]
) -> None:
    assert np.array_equal(kontext[0].draw(IMAGE), driver.draw(IMAGE))


def test_the_reference_changes_a_kontext_picture(
    kontext: tuple[EngineDriver, FluxKontextPipeline],
) -> None:
    driver, _ = kontext
    one = sized(driver, 64, 64, (64, 64))
    assert one.source is not None
    side = one.source.pixels.shape[0]
    other = replace(one, source=picture(side, side, seed=9))
    assert not np.array_equal(driver.draw(one), driver.draw(other))


def test_the_picture_equals_the_pipelines_but_for_rounding(
    driver: EngineDriver, pipeline: FluxPipeline
) -> None:
    image = INPAINTING["oblong"]
    theirs = FluxInpaintPipeline(**pipeline.components)
    latents = driver.latents(image)[None]
    unpacked = theirs._unpack_latents(latents, 64, 96, 8)
    vae = pipeline.vae
    with torch.inference_mode():
        decoded = vae.decode(unpacked / vae.config.scaling_factor + vae.config.shift_factor).sample
    expected = theirs.image_processor.postprocess(decoded, output_type="np")[0] * 255
    assert np.abs(driver.draw(image) - expected).max() <= 1


def test_parity_would_notice_another_picture_and_another_mask(
    driver: EngineDriver, pipeline: FluxPipeline
) -> None:
    theirs = FluxImg2ImgPipeline(**pipeline.components)
    theirs.set_progress_bar_config(disable=True)
    image = IMAGE_TO_IMAGE["default strength"]
    expected = drawn_by(theirs, driver, image, strength=0.6)
    for other in (picture(seed=5), masked(picture())):
        found = driver.latents(replace(image, source=other))
        assert relative_error(found, expected) > 100 * TOLERANCE
