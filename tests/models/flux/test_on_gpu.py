"""The embedded checkpoint on a GPU: fused operations in graphs, all captured before ready."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from predictors.compute.device.placement import Placement
from predictors.diffusion.request import ImageParameters
from predictors.models.flux.model import FluxModel
from tests.diffusion.driver import CHECKPOINT, FAST, EngineDriver, drive_model

IMAGE = ImageParameters("a large red circle", num_inference_steps=4, seed=3)


@pytest.mark.gpu
def test_traffic_replays_graphs_and_ends_near_the_latents_of_a_cpu(driver: EngineDriver) -> None:
    placement = Placement(torch.device("cuda"), torch.bfloat16, "inductor")
    knobs = FAST | {"tiers": "lossless", "slots": 2}
    on_gpu = drive_model(FluxModel(CHECKPOINT), placement, name="flux-gpu", **knobs)
    on_gpu.engine.warm(lambda *_: None)
    assert on_gpu.engine.runner.captures == 3  # text encoders, a denoise step, the decoder
    images = [replace(IMAGE, seed=seed, num_inference_steps=2 + seed) for seed in range(4)]
    pictures = on_gpu.drive([(i, on_gpu.job(image)) for i, image in enumerate(images)])
    assert len({picture.tobytes() for picture in pictures}) == len(images)
    assert on_gpu.engine.describe()["captures_after_ready"] == 0
    assert on_gpu.engine.describe()["recompilations_after_ready"] == 0
    found, exact = on_gpu.latents(IMAGE).float().cpu(), driver.latents(IMAGE)
    assert (found - exact).norm() < 0.1 * exact.norm()
    on_gpu.engine.close()
