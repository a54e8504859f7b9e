"""A picture's bytes do not depend on the pictures beside it: not on their number, their requests
or when they were admitted.

The number of threads varies, since it decides how rows are split: tests/models/flux shows that with
seven, plain batching changes bits, so these tests can fail.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from predictors.diffusion.request import ImageParameters
from tests.diffusion.driver import EngineDriver, open_driver

IMAGES = [
    ImageParameters("a large red circle", num_inference_steps=5, seed=1),
    ImageParameters("a small blue square", num_inference_steps=3, seed=2, guidance_scale=1.5),
    ImageParameters("green star", num_inference_steps=7, seed=3, width=96),
    ImageParameters("yellow ring", num_inference_steps=4, seed=4, negative_prompt="red"),
    ImageParameters("a large red circle", num_inference_steps=2, seed=5, width=96),
    ImageParameters("", num_inference_steps=6, seed=6, guidance_scale=0.0),
    ImageParameters(
        "purple cross", num_inference_steps=3, seed=7, negative_prompt="blue", true_cfg_scale=2.0
    ),
    ImageParameters(
        "orange heart left of a star", num_inference_steps=4, seed=8, max_sequence_length=24
    ),
]
JOINS = {
    "together": [0] * 8,
    "one after another": [0, 1, 2, 3, 4, 5, 6, 7],
    "in waves": [0, 0, 0, 3, 3, 5, 9, 9],
    "backwards": [9, 8, 6, 5, 3, 2, 1, 0],
}


@pytest.fixture(scope="module")
def wide_driver() -> EngineDriver:
    return open_driver(slots=8)


def test_eight_different_jobs_get_the_same_bytes_together_as_alone(
    wide_driver: EngineDriver, threads: int
) -> None:
    alone = [wide_driver.draw(image) for image in IMAGES]
    assert len({a.tobytes() for a in alone}) == len(IMAGES)
    for name, arrivals in JOINS.items():
        jobs = [wide_driver.job(image, str(i)) for i, image in enumerate(IMAGES)]
        together = wide_driver.drive(list(zip(arrivals, jobs, strict=True)))
        for i, (a, b) in enumerate(zip(alone, together, strict=True)):
            assert np.array_equal(a, b), f"{name}: job {i} with {threads} threads"


def test_latents_are_equal_to_the_bit_at_every_width(
    wide_driver: EngineDriver, threads: int
) -> None:
    image = ImageParameters("a large red circle", num_inference_steps=2, seed=1)
    alone = wide_driver.latents(image)
    for width in range(2, 9):
        jobs = [wide_driver.job(replace(image, seed=1 + i)) for i in range(width)]
        for job in jobs:
            assert wide_driver.engine.admit(job)
        for _ in range(2):
            wide_driver.engine.step(jobs)
        found = wide_driver.state(jobs[0]).latents
        for job in jobs:
            wide_driver.engine.evict(job)
        assert torch.equal(found, alone), f"width {width} with {threads} threads"


def test_eight_pictures_of_one_shape_share_their_steps(
    wide_driver: EngineDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = wide_driver.engine.runner
    widths = []
    denoise = runner.denoise
    monkeypatch.setattr(
        runner, "denoise", lambda states: widths.append(len(states)) or denoise(states)
    )
    images = [ImageParameters("x", num_inference_steps=3, seed=i) for i in range(8)]
    wide_driver.drive([(0, wide_driver.job(image)) for image in images])
    assert widths == [8, 8, 8]
