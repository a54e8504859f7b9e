"""Pictures with adapters: diffusers' with the adapters fused into its weights, and each row's bytes
those that it has alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from numpy.typing import NDArray

from predictors.diffusion.adapters import PICTURE, PROMPT, STEP, AdapterPlace
from predictors.diffusion.request import ImageParameters, LoraScale
from tests.diffusion.driver import CHECKPOINT, EngineDriver, open_driver
from tests.models.flux.conftest import diffusers_pipeline
from tests.models.flux.random_adapters import fuse, random_adapter
from tests.models.flux.test_parity import call_of, relative_error
from tests.tools.syncs import count_host_syncs

Pixels = NDArray[np.uint8]

TOLERANCE = 1e-4
IMAGE = ImageParameters("a large red circle", num_inference_steps=3, seed=3)


def is_step(path: str, place: AdapterPlace) -> bool:
    return place.stage == STEP


def is_usual(path: str, place: AdapterPlace) -> bool:
    """As most trainers have it: attention alone."""
    return place.stage == STEP and ".attn." in path


A = random_adapter("a", 4)  # every linear that there is
B = random_adapter("b", 8, is_usual)
WIDE = random_adapter("wide", 20, is_step)
EVERY = (A, B, WIDE)
MIXES: dict[str, dict[str, float]] = {
    "none": {},
    "a": {"a": 1.0},
    "b": {"b": 1.0},
    "a and b at a half": {"a": 0.5, "b": 0.5},
    "backwards": {"wide": -0.7},
    "all": {"wide": 0.3, "b": 0.8, "a": 0.1},
}


def with_loras(image: ImageParameters, mix: dict[str, float]) -> ImageParameters:
    return replace(image, loras=tuple(LoraScale(*pair) for pair in mix.items()))


@pytest.fixture(scope="module")
def adapted() -> EngineDriver:
    """Eight slots, and three adapters that together have all rank rows of a pass."""
    driver = open_driver(model="flux-lora", slots=8, lora_max_active=2, lora_max_rank=32)
    for weights in EVERY:
        driver.engine.add_adapter(weights)
    return driver


@contextmanager
def fused_pipeline(mix: dict[str, float]) -> Iterator[FluxPipeline]:
    pipeline = diffusers_pipeline(CHECKPOINT)
    fuse(pipeline, {weights: mix[weights.name] for weights in EVERY if weights.name in mix})
    yield pipeline


@pytest.mark.parametrize("mix", [name for name in MIXES if name != "none"])
def test_latents_are_those_of_diffusers_with_the_adapters_fused(
    mix: str, adapted: EngineDriver, driver: EngineDriver
) -> None:
    image = with_loras(IMAGE, MIXES[mix])
    with fused_pipeline(MIXES[mix]) as pipeline:
        theirs = pipeline(**call_of(adapted.limits.resolve(image)), output_type="latent").images[0]
    assert relative_error(adapted.latents(image), theirs) <= TOLERANCE
    assert relative_error(driver.latents(IMAGE), theirs) > 100 * TOLERANCE  # it would be noticed


def test_the_picture_is_within_a_level_of_diffusers_also_with_true_cfg(
    adapted: EngineDriver,
) -> None:
    image = replace(IMAGE, negative_prompt="blue", true_cfg_scale=2.5, width=96)
    mix = MIXES["a and b at a half"]
    with fused_pipeline(mix) as pipeline:
        call = call_of(adapted.limits.resolve(image))
        theirs = np.asarray(pipeline(**call).images[0]).astype(int)
    ours = adapted.draw(with_loras(image, mix)).astype(int)
    assert np.abs(ours - theirs).max() <= 1
    assert (ours != theirs).mean() < 0.01


def test_eight_rows_of_any_mix_get_the_bytes_that_each_gets_alone(
    adapted: EngineDriver, driver: EngineDriver, threads: int
) -> None:
    images = [
        with_loras(replace(IMAGE, seed=i // 4, num_inference_steps=2 + i % 3), mix)
        for i, mix in enumerate(
            [MIXES[name] for name in ("none", "a", "b", "a and b at a half")] * 2
        )
    ]
    alone = [adapted.draw(image) for image in images]
    assert len({each.tobytes() for each in alone}) == len(images)
    for arrivals in ([0] * 8, [0, 1, 2, 0, 1, 2, 0, 4]):
        jobs = [adapted.job(image) for image in images]
        together = adapted.drive(list(zip(arrivals, jobs, strict=True)))
        for i, (a, b) in enumerate(zip(alone, together, strict=True)):
            assert np.array_equal(a, b), f"row {i} with {threads} threads, {arrivals}"


def test_rows_of_different_adapters_share_their_passes(
    adapted: EngineDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = adapted.engine.runner
    widths: list[tuple[int, int]] = []
    velocity = runner._velocity

    def counted(state: object, latents: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        widths.append((len(latents), rest[2].shape[1] if len(rest) > 2 else 0))
        return velocity(state, latents, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "_velocity", counted)
    mixes = [{}, {}, {"a": 1.0}, {"b": 0.5}, {"a": 0.2, "b": 1.0}, {"wide": 1.0}, {"wide": 2.0}]
    images = [with_loras(replace(IMAGE, num_inference_steps=1), mix) for mix in mixes]
    adapted.drive([(0, adapted.job(image)) for image in images])
    assert widths == [(2, 0), (3, 16), (2, 32)]


def test_a_step_with_adapters_has_no_host_sync_and_no_upload(adapted: EngineDriver) -> None:
    jobs = [adapted.job(with_loras(IMAGE, mix)) for mix in MIXES.values()]
    for job in jobs:
        assert adapted.engine.admit(job)
    adapted.engine.step(jobs)  # prompts are encoded and rank rows uploaded in the first step
    with count_host_syncs() as found:
        adapted.engine.step(jobs)
    assert found.syncs == 0, dict(found)
    for job in jobs:
        adapted.engine.evict(job)


def test_without_adapters_the_bytes_are_those_of_an_engine_that_takes_none(
    adapted: EngineDriver, driver: EngineDriver
) -> None:
    for image in (IMAGE, replace(IMAGE, negative_prompt="blue"), replace(IMAGE, width=96)):
        plain = driver.draw(image)
        assert np.array_equal(adapted.draw(image), plain)
        assert np.array_equal(adapted.draw(with_loras(image, {"a": 0.0, "wide": 0.0})), plain)


def test_the_order_of_a_requests_adapters_and_their_rows_change_no_bit() -> None:
    first = open_driver(lora_max_active=1, lora_max_rank=16)
    second = open_driver(lora_max_active=1, lora_max_rank=16)
    for driver, order in ((first, (A, B)), (second, (B, A))):
        for weights in order:
            driver.engine.add_adapter(weights)
    image = replace(IMAGE, num_inference_steps=1)
    one = first.draw(with_loras(image, {"a": 0.5, "b": 0.7}))
    assert np.array_equal(one, second.draw(with_loras(image, {"b": 0.7, "a": 0.5})))


def test_rank_rows_that_another_adapter_had_hold_nothing_of_it(adapted: EngineDriver) -> None:
    reused = open_driver(lora_max_active=1, lora_max_rank=32)
    reused.engine.add_adapter(WIDE)
    reused.engine.remove_adapter("wide")
    for weights in (random_adapter("other", 20), B):
        reused.engine.add_adapter(weights)
    image = with_loras(replace(IMAGE, num_inference_steps=1), MIXES["b"])
    assert np.array_equal(reused.draw(image), adapted.draw(image))


def test_an_embedding_is_kept_by_the_adapters_that_change_prompts_and_no_others() -> None:
    driver = open_driver(lora_max_active=2, lora_max_rank=16)
    texts = {
        "clip": random_adapter("clip", 2, lambda path, _: path.startswith("text_encoder.")),
        "t5": random_adapter("t5", 2, lambda path, _: path.startswith("text_encoder_2.")),
        "context": random_adapter("context", 2, lambda path, _: "context_embedder" in path),
        "step": random_adapter("step", 2, is_step),
        "picture": random_adapter("picture", 2, lambda _, place: place.stage == PICTURE),
    }
    for weights in texts.values():
        driver.engine.add_adapter(weights)
        assert weights.changes

    image = replace(IMAGE, num_inference_steps=1)

    def kept(mix: dict[str, float]) -> int:
        """Embeddings after the picture is drawn."""
        driver.draw(with_loras(image, mix))
        return len(driver.engine._prompts)

    assert kept({}) == 1
    assert kept({"step": 1.0}) == kept({"picture": 1.0}) == 1
    assert kept({"clip": 1.0}) == 2
    assert kept({"clip": 1.0, "step": 0.5}) == 2
    assert kept({"clip": 0.5}) == 3
    assert kept({"t5": 0.5}) == 4
    assert kept({"context": 0.5}) == 5
    assert kept({"context": 0.5, "clip": 0.5}) == 6
    plain = driver.draw(image)
    for name in texts:
        assert not np.array_equal(driver.draw(with_loras(image, {name: 1.0})), plain), name
    assert np.array_equal(driver.draw(image), plain)  # no hook is left behind
    assert {place.stage for place in driver.engine.adapters._places.values()} == {
        STEP, PICTURE, PROMPT,
    }  # fmt: skip


def test_fp8_with_adapters_is_within_its_own_rounding(adapted: EngineDriver) -> None:
    """As far from the float32 picture with adapters as fp8 alone is from the one without."""
    knobs = {"tiers": "high", "conditioning_precision": "fp8"}
    narrow = open_driver(slots=8, lora_max_active=2, lora_max_rank=32, **knobs)
    for weights in EVERY:
        narrow.engine.add_adapter(weights)
    plain = relative_error(narrow.latents(IMAGE), adapted.latents(IMAGE))
    assert 1e-4 < plain < 0.15
    images = [with_loras(IMAGE, mix) for mix in MIXES.values()]
    for image in images:
        ours, exact = narrow.latents(image), adapted.latents(image)
        assert relative_error(ours, exact) < 2 * plain
    alone = [narrow.draw(image) for image in images]
    together = narrow.drive([(0, narrow.job(image)) for image in images])
    for a, b in zip(alone, together, strict=True):
        assert np.array_equal(a, b)
