"""The embedded checkpoint on a GPU: fused operations in graphs, all captured before ready."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from predictors.compute.checkpoint.values import check_magnitudes
from predictors.compute.device.placement import Placement
from predictors.diffusion.request import ImageParameters
from predictors.errors import EngineFailed, StepFailed
from predictors.models.flux.model import FluxModel
from tests.diffusion.driver import CHECKPOINT, FAST, EngineDriver, drive_model, picture
from tests.models.flux.edited import make_fill, make_kontext, masked
from tests.models.flux.edited import picture as source_picture

IMAGE = ImageParameters("a large red circle", num_inference_steps=4, seed=3)
GPU = Placement(torch.device("cuda"), torch.bfloat16, "inductor")
CPU = Placement(torch.device("cpu"), torch.float32, "off")


@pytest.mark.gpu
def test_traffic_replays_graphs_and_ends_near_the_latents_of_a_cpu(driver: EngineDriver) -> None:
    knobs = FAST | {"tiers": "lossless", "slots": 2}
    on_gpu = drive_model(FluxModel(CHECKPOINT), GPU, name="flux-gpu", **knobs)
    on_gpu.engine.warm(lambda *_: None)
    # text encoders, a denoise step, both halves of the autoencoder
    assert on_gpu.engine.runner.captures == 4
    images = [replace(IMAGE, seed=seed, num_inference_steps=2 + seed) for seed in range(4)]
    pictures = on_gpu.drive([(i, on_gpu.job(image)) for i, image in enumerate(images)])
    assert len({picture.tobytes() for picture in pictures}) == len(images)
    assert on_gpu.engine.describe()["captures_after_ready"] == 0
    assert on_gpu.engine.describe()["recompilations_after_ready"] == 0
    found, exact = on_gpu.latents(IMAGE).float().cpu(), driver.latents(IMAGE)
    assert (found - exact).norm() < 0.1 * exact.norm()
    on_gpu.engine.close()


@pytest.fixture(scope="module")
def fast() -> Iterator[EngineDriver]:
    """All tiers, warm."""
    knobs = FAST | {"tiers": "lossless,high,turbo", "slots": 3}
    on_gpu = drive_model(FluxModel(CHECKPOINT), GPU, name="flux-gpu", **knobs)
    on_gpu.engine.warm(lambda *_: None)
    yield on_gpu
    on_gpu.engine.close()


@pytest.mark.gpu
@pytest.mark.parametrize("tier", ["lossless", "high", "turbo"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_fails_alone_at_every_tier(
    fast: EngineDriver, tier: str, value: float
) -> None:
    images = [replace(IMAGE, seed=seed, tier=tier) for seed in range(3)]
    alone = [fast.draw(image) for image in images]
    jobs = [fast.job(image) for image in images]
    for job in jobs:
        assert fast.engine.admit(job)
    while fast.steps_done(jobs[1]) < 2:
        fast.engine.step(jobs)
    with torch.inference_mode():
        fast.state(jobs[1]).latents[0, 0] = value
    while fast.engine.busy:
        fast.engine.step(fast.engine.active)
    failure = jobs[1].error
    assert isinstance(failure, StepFailed)
    assert "not finite" in failure.message
    assert not jobs[1]._chunks
    for i in (0, 2):
        drawn = picture(jobs[i])
        if tier == "lossless":
            assert np.array_equal(drawn, alone[i])
        assert drawn.min() < drawn.max()
    assert np.array_equal(fast.draw(images[1]), alone[1])
    assert fast.engine.describe()["captures_after_ready"] == 0
    assert fast.engine.describe()["recompilations_after_ready"] == 0


@pytest.mark.gpu
def test_edits_replay_the_graphs_of_plain_pictures(fast: EngineDriver) -> None:
    plain = replace(IMAGE, tier="lossless")
    images = [
        plain,
        replace(plain, source=source_picture()),
        replace(plain, source=masked(source_picture()), seed=4),
        replace(plain, source=source_picture(), strength=0.0),
    ]
    before = fast.engine.runner.captures
    alone = [fast.draw(image) for image in images]
    together = fast.drive([(0, fast.job(image)) for image in images])
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    assert np.array_equal(fast.draw(replace(images[1], strength=1.0)), alone[0])
    fast.draw(replace(images[2], tier="high"))
    fast.draw(replace(images[2], tier="turbo", num_inference_steps=12))
    assert fast.engine.runner.captures == before
    assert fast.engine.describe()["captures_after_ready"] == 0


@pytest.mark.gpu
@pytest.mark.parametrize("make", [make_fill, make_kontext])
def test_fill_and_kontext_are_captured_before_ready(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = make(tmp_path / "c")
    on_gpu = drive_model(FluxModel(folder), GPU, name="flux-gpu-edit", **(FAST | {"slots": 2}))
    on_gpu.engine.warm(lambda *_: None)
    size = on_gpu.limits.source_size((64, 64), (64, 64))
    own = source_picture(*size)
    image = replace(IMAGE, width=64, height=64, source=own if make is make_kontext else masked(own))
    drawn = [on_gpu.draw(replace(image, seed=seed)) for seed in (1, 2, 1)]
    assert np.array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[0], drawn[1])
    assert on_gpu.engine.describe()["captures_after_ready"] == 0
    on_gpu.engine.close()


@pytest.mark.gpu
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_decoders_verdict_is_right_in_its_graph(fast: EngineDriver, value: float) -> None:
    job = fast.job(IMAGE)
    assert fast.engine.admit(job)
    while fast.steps_done(job) < 4:
        fast.engine.step([job])
    state = fast.state(job)
    with torch.inference_mode():
        assert fast.engine.runner.decode(state).result().is_finite
        state.latents[-1, -1] = value  # one latent of one patch
        assert not fast.engine.runner.decode(state).result().is_finite
    fast.engine.evict(job)


@pytest.mark.gpu
def test_fp8_conditioning_is_captured_too_and_stays_near_a_cpus(fast: EngineDriver) -> None:
    image = replace(IMAGE, tier="high")
    knobs = FAST | {"tiers": "high,turbo", "slots": 2, "conditioning_precision": "fp8"}
    narrow = drive_model(FluxModel(CHECKPOINT), GPU, name="flux-gpu-fp8", **knobs)
    on_cpu = drive_model(FluxModel(CHECKPOINT), CPU, name="flux-cpu-fp8", **knobs)
    narrow.engine.warm(lambda *_: None)
    job = narrow.job(image)
    with torch.inference_mode():
        found, exact = (
            driver.engine.runner.encode(job.work.prompts[0]).context.float().cpu()
            for driver in (narrow, on_cpu)
        )
        assert (found - exact).norm() < 0.05 * exact.norm()
    exact = on_cpu.latents(image)
    assert (narrow.latents(image).float().cpu() - exact).norm() < 0.15 * exact.norm()
    narrow.draw(replace(image, tier="turbo", negative_prompt="a square", true_cfg_scale=3.0))
    assert narrow.engine.describe()["captures_after_ready"] == 0
    assert narrow.engine.describe()["recompilations_after_ready"] == 0
    narrow.engine.close()


@pytest.mark.gpu
def test_damaged_values_are_found_on_the_device() -> None:
    sound = torch.randn(64, 64, device="cuda", dtype=torch.bfloat16)
    check_magnitudes([(sound, "sound"), (sound.to(torch.float8_e4m3fn), "narrow")])
    for value in (float("nan"), float("-inf"), -1e30):
        broken = sound.clone()
        broken[3, 5] = value
        with pytest.raises(EngineFailed, match="tensor broken holds"):
            check_magnitudes([(sound, "sound"), (broken, "broken")])
