"""Against diffusers' own pipeline, in float32 from the same noise: the same latents, the same
picture.

The only thing that is not compared is noise: both sides draw it from a CPU generator with the
request's seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from predictors.diffusion.request import ImageParameters, ImageRequest
from tests.diffusion.driver import CHECKPOINT, EngineDriver, open_driver

TOLERANCE = 1e-4

DEV = {
    "square": ImageParameters("a large red circle", num_inference_steps=8, seed=3),
    "more text than T5 is given": ImageParameters(
        "blue square left of " * 40, seed=1, num_inference_steps=3
    ),
    "empty prompt": ImageParameters("", num_inference_steps=2, seed=5),
    "control characters": ImageParameters("a\x00b\x1f\t\n red", num_inference_steps=2, seed=6),
    "one step": ImageParameters("green star", num_inference_steps=1, seed=0),
    "oblong": ImageParameters(
        "green star", width=96, height=160, num_inference_steps=4, seed=2**53 - 1
    ),
    "long text": ImageParameters(
        "green star", max_sequence_length=48, num_inference_steps=2, seed=4
    ),
    "guidance": ImageParameters(
        "blue triangle", guidance_scale=7.25, num_inference_steps=5, seed=12
    ),
    "no guidance": ImageParameters(
        "blue triangle", guidance_scale=0.0, num_inference_steps=2, seed=12
    ),
    "true CFG": ImageParameters("red star", negative_prompt="blue", num_inference_steps=5, seed=8),
    "true CFG, one word": ImageParameters(
        "red star", negative_prompt="a", true_cfg_scale=2.5, num_inference_steps=3, seed=9
    ),
    "true CFG off": ImageParameters(
        "red star", negative_prompt="blue", true_cfg_scale=1.0, num_inference_steps=2, seed=9
    ),
}
SCHNELL = {
    "default steps": ImageParameters("a red circle", seed=3),
    "true CFG": ImageParameters("red star", negative_prompt="blue", num_inference_steps=3, seed=8),
    "oblong": ImageParameters("red star", width=128, height=80, num_inference_steps=2, seed=1),
}


def call_of(request: ImageRequest) -> dict[str, Any]:
    call: dict[str, Any] = {
        "prompt": request.prompt,
        "width": request.width,
        "height": request.height,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "max_sequence_length": request.max_sequence_length,
        "generator": torch.Generator("cpu").manual_seed(request.seed),
    }
    if request.negative_prompt is not None:
        call |= {"negative_prompt": request.negative_prompt}
        call |= {"true_cfg_scale": request.true_cfg_scale}
    return call


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("case", DEV)
def test_latents_equal_the_pipelines(
    case: str, driver: EngineDriver, pipeline: FluxPipeline
) -> None:
    call = call_of(driver.limits.resolve(DEV[case]))
    theirs = pipeline(**call, output_type="latent").images[0]
    assert relative_error(driver.latents(DEV[case]), theirs) <= TOLERANCE


@pytest.mark.parametrize("case", SCHNELL)
def test_latents_equal_without_guidance_embedding_from_shards(
    case: str, schnell_driver: EngineDriver, schnell_pipeline: FluxPipeline
) -> None:
    assert schnell_driver.engine.runner.passes.parts.conditioning.guidance is None
    call = call_of(schnell_driver.limits.resolve(SCHNELL[case]))
    theirs = schnell_pipeline(**call, output_type="latent").images[0]
    assert relative_error(schnell_driver.latents(SCHNELL[case]), theirs) <= TOLERANCE


def test_the_picture_equals_the_pipelines_but_for_rounding(
    driver: EngineDriver, pipeline: FluxPipeline
) -> None:
    image = ImageParameters(
        "a small blue square", width=96, height=64, num_inference_steps=4, seed=11
    )
    ours = driver.draw(image).astype(int)
    theirs = np.asarray(pipeline(**call_of(driver.limits.resolve(image))).images[0]).astype(int)
    assert ours.shape == theirs.shape == (64, 96, 3)
    assert np.abs(ours - theirs).max() <= 1
    assert (ours != theirs).mean() < 0.01
    assert ours.std() > 1  # a picture, not a plane


def test_bfloat16_rounds_where_the_pipeline_rounds(driver: EngineDriver) -> None:
    """A GPU computes in bfloat16: from equal noise the distance to the pipeline in bfloat16 is
    smaller than the pipeline's own distance to float32."""
    image = ImageParameters("a large red circle", num_inference_steps=8, seed=3)
    half = open_driver(dtype=torch.bfloat16)
    pipeline = FluxPipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    call = call_of(half.limits.resolve(image))
    noise = half.job(image).work.plan.noise[None].to(torch.bfloat16)
    theirs = pipeline(**call, latents=noise, output_type="latent").images[0]
    ours, exact = half.latents(image), driver.latents(image)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert relative_error(ours.float(), theirs.float()) < relative_error(theirs.float(), exact)


def test_parity_would_notice_another_seed(driver: EngineDriver, pipeline: FluxPipeline) -> None:
    image = DEV["square"]
    call = call_of(driver.limits.resolve(image)) | {
        "generator": torch.Generator("cpu").manual_seed(4)
    }
    theirs = pipeline(**call, output_type="latent").images[0]
    assert relative_error(driver.latents(image), theirs) > 100 * TOLERANCE
