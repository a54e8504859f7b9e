"""A picture with NaN or infinity fails its job, or the start, instead of becoming black."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from predictors.diffusion.request import ImageParameters
from predictors.errors import EngineFailed, StepFailed
from predictors.models.flux.modules.decoder import decode
from predictors.models.flux.passes import FluxPasses
from predictors.models.flux.weights import Parts
from predictors.protocol.faults import fault_of
from tests.diffusion.driver import DiffusionJob, EngineDriver, open_driver, picture
from tests.tools.syncs import count_host_syncs

RED = ImageParameters("a red circle", num_inference_steps=3, seed=1)
BAD = [float("nan"), float("inf"), float("-inf")]


@pytest.fixture(scope="module")
def own() -> EngineDriver:
    """An engine whose weights a test may overwrite."""
    return open_driver(slots=3)


@pytest.fixture(autouse=True)
def empty(own: EngineDriver) -> None:
    for job in own.engine.active:
        own.engine.evict(job)


def started(driver: EngineDriver, count: int = 3) -> list[DiffusionJob]:
    jobs = [driver.job(replace(RED, seed=seed), str(seed)) for seed in range(count)]
    for job in jobs:
        assert driver.engine.admit(job)
    driver.engine.step(jobs)
    driver.engine.step(jobs)
    return jobs


def finish(driver: EngineDriver) -> None:
    while driver.engine.busy:
        driver.engine.step(driver.engine.active)


def parts(driver: EngineDriver) -> Parts:
    passes = driver.engine.runner.passes
    assert isinstance(passes, FluxPasses)
    return passes.parts


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("place", ["one latent", "all latents"])
def test_a_row_of_a_batch_that_is_not_finite_fails_alone(
    own: EngineDriver, value: float, place: str
) -> None:
    alone = [own.draw(replace(RED, seed=seed)) for seed in range(3)]
    jobs = started(own)
    latents = own.state(jobs[1]).latents = own.state(jobs[1]).latents.clone()
    latents[(0, 0) if place == "one latent" else ...] = value
    finish(own)
    failure = jobs[1].error
    assert isinstance(failure, StepFailed)
    assert "not finite" in failure.message
    assert (fault_of(failure).status, fault_of(failure).code) == (500, "job_failed")
    assert not jobs[1]._chunks
    for i in (0, 2):
        assert np.array_equal(picture(jobs[i]), alone[i])


@pytest.mark.parametrize("form", ["base", "fp8"])
def test_an_embedding_that_is_not_finite_is_found_in_the_picture_and_not_kept(form: str) -> None:
    driver = open_driver(slots=2, tiers="lossless,high")
    tier = "lossless" if form == "base" else "high"
    image = replace(RED, tier=tier)
    alone = driver.draw(image)
    (prompt,) = driver.job(image).work.prompts
    kept = driver.engine._prompts.get(prompt.key)
    assert kept is not None
    with torch.inference_mode():
        kept.context[3] = float("nan")
    job, other = driver.job(image), driver.job(replace(image, prompt="a blue square"))
    assert driver.engine.admit(job)
    assert driver.engine.admit(other)
    finish(driver)
    assert isinstance(job.error, StepFailed)
    assert other.error is None
    assert prompt.key not in driver.engine._prompts
    assert np.array_equal(driver.draw(image), alone)


@pytest.mark.parametrize("value", BAD)
def test_a_decoder_whose_output_is_not_finite_fails_the_picture(
    own: EngineDriver, value: float
) -> None:
    layer = parts(own).decoder.conv_out
    assert layer.bias is not None
    before = layer.bias[0].item()
    job = started(own, 1)[0]
    try:
        layer.bias[0] = value
        finish(own)
    finally:
        layer.bias[0] = before
    assert isinstance(job.error, StepFailed)


def test_the_check_comes_with_the_picture_and_costs_no_other_wait(own: EngineDriver) -> None:
    job = own.job(replace(RED, num_inference_steps=1))
    assert own.engine.admit(job)
    own.engine.step([job])
    own.state(job).latents = torch.full_like(own.state(job).latents, float("nan"))
    with count_host_syncs() as found:
        own.engine.step([job])
    assert isinstance(job.error, StepFailed)
    assert found.syncs == 1


@pytest.mark.parametrize("value", [0.0, *BAD])
def test_the_last_level_is_one_only_for_a_finite_picture(own: EngineDriver, value: float) -> None:
    decoder, latents = parts(own).decoder, torch.randn(1, 16, 6, 4)
    latents[0, 3, 2, 1] = value
    with torch.inference_mode():
        decoded = decode(decoder, latents)
    assert decoded[-1] == (value == 0.0)


# -- warm-up -------------------------------------------------------------------------------------
WEIGHTS: dict[str, Callable[[Parts], torch.Tensor]] = {
    "clip": lambda p: p.clip.final_layer_norm.weight,
    "t5": lambda p: p.t5.encoder.final_layer_norm.weight,
    "transformer": lambda p: p.transformers["base"].ends.project.weight,
    "vae": lambda p: p.decoder.conv_in.weight,
}


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("part", WEIGHTS)
def test_a_weight_that_is_not_finite_fails_the_start(part: str, value: float) -> None:
    driver = open_driver()
    with torch.inference_mode():
        WEIGHTS[part](parts(driver)).view(-1)[0] = value
    with pytest.raises(EngineFailed, match=r"warm-up .*(is|are) not finite; the weights are"):
        driver.engine.warm(lambda *_: None)


def test_a_picture_of_one_colour_fails_the_start() -> None:
    driver = open_driver()
    with torch.inference_mode():
        nn.init.zeros_(parts(driver).decoder.conv_out.weight)
        nn.init.zeros_(parts(driver).decoder.conv_out.bias)
    with pytest.raises(EngineFailed, match="of one colour"):
        driver.engine.warm(lambda *_: None)


def test_a_picture_of_one_colour_that_is_not_gray_fails_the_start() -> None:
    driver = open_driver()
    bias = parts(driver).decoder.conv_out.bias
    assert bias is not None
    with torch.inference_mode():
        nn.init.zeros_(parts(driver).decoder.conv_out.weight)
        bias.copy_(torch.tensor([-0.5, 0.0, 0.5]))
    with pytest.raises(EngineFailed, match="of one colour"):
        driver.engine.warm(lambda *_: None)


@pytest.mark.parametrize("part", ["clip", "t5"])
def test_a_text_encoder_that_reads_nothing_fails_the_start(part: str) -> None:
    driver = open_driver()
    own = parts(driver)
    layer = own.t5.shared if part == "t5" else own.clip.final_layer_norm
    with torch.inference_mode():
        nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
    with pytest.raises(EngineFailed, match="embeddings of two warm-up prompts are equal"):
        driver.engine.warm(lambda *_: None)


def test_a_dtype_too_narrow_fails_the_start() -> None:
    driver = open_driver(dtype=torch.float16)
    with torch.inference_mode():
        parts(driver).decoder.conv_in.weight.mul_(1e5)
    with pytest.raises(EngineFailed, match="not finite"):
        driver.engine.warm(lambda *_: None)
