"""Previews of the embedded checkpoint on a GPU: launched without a wait, nothing captured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from predictors.diffusion.request import ImageResult, PartialPicture
from predictors.models.flux.model import FluxModel
from tests.diffusion.driver import CHECKPOINT, FAST, drive_model
from tests.models.flux.test_on_gpu import GPU, IMAGE
from tests.tools.syncs import no_host_syncs

WATCHED = replace(IMAGE, num_inference_steps=12, partial_images=3)


@pytest.mark.gpu
@pytest.mark.parametrize("decoder", ["linear", "vae"])
def test_previews_on_a_gpu_wait_for_nothing_and_capture_nothing(decoder: str) -> None:
    knobs = FAST | {"tiers": "lossless", "slots": 2, "preview": decoder}
    driver = drive_model(FluxModel(CHECKPOINT), GPU, name=f"flux-gpu-{decoder}", **knobs)
    driver.engine.warm(lambda *_: None)
    alone = driver.draw(replace(WATCHED, partial_images=0))
    job = driver.job(WATCHED)
    assert driver.engine.admit(job)
    driver.engine.step([job])  # text encoding and uploads are part of a job's first step
    with no_host_syncs():
        for _ in range(11):
            driver.engine.step([job])
    driver.engine.step([job])
    *previews, result = job._chunks
    assert [each.index for each in previews if isinstance(each, PartialPicture)] == [0, 1, 2]
    assert isinstance(result, ImageResult)
    assert np.array_equal(result.pixels, alone)
    shown = driver.engine.describe()
    assert shown["captures_after_ready"] == shown["recompilations_after_ready"] == 0
    driver.engine.close()
