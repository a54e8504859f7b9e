"""The engine serves any `DiffusionModel`: here one with nothing of FLUX in it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import torch

from predictors.compute.device.placement import Placement
from predictors.diffusion.request import ImageParameters
from tests.diffusion.driver import EngineDriver, Pixels, drive_model
from tests.diffusion.tiny_model import TinyModel, tiny_decode, tiny_velocity

IMAGE = ImageParameters("tiny", num_inference_steps=3, seed=7, width=40, height=24)


def tiny_driver() -> EngineDriver:
    placement = Placement(torch.device("cpu"), torch.float32, "off")
    return drive_model(TinyModel(), placement, sizes="32x32", tiers="lossless", min_side=8)


def by_hand(image: ImageParameters) -> Pixels:
    """Euler's method over the tiny velocity: 3 x 5 patches of 8 pixels."""
    model = TinyModel()
    latents = model.draw_noise(7, 3, 5)
    sigmas = model.schedule.sigmas(3, 15)
    (ids,) = model.tokenize(image.prompt, 4).ids
    context = ids[0, :, None].float().expand(-1, 3) / 256
    for level, below in itertools.pairwise(sigmas):
        modulation = torch.full((1, 1), float(level))
        velocity = tiny_velocity(latents[None], context[None], modulation, torch.zeros(3, 5))[0]
        latents = latents + (below - level) * velocity
    return tiny_decode(latents.view(1, 3, 5, 3).permute(0, 3, 1, 2))[:-1].view(24, 40, 3).numpy()


def test_a_model_with_one_text_encoder_and_no_pooled_vector_is_drawn() -> None:
    drawn = tiny_driver().draw(IMAGE)
    assert drawn.shape == (24, 40, 3)
    assert np.abs(drawn.astype(int) - by_hand(IMAGE).astype(int)).max() <= 1


def test_such_a_model_warms_shares_steps_and_is_described() -> None:
    driver = tiny_driver()
    shapes: list[str] = []
    driver.engine.warm(lambda shape, done, total: shapes.append(shape))
    assert shapes == [f"32x32 base x{rows}" for rows in range(1, driver.engine.slots + 1)]
    assert driver.engine.describe()["attention"] == "none"
    images = [replace(IMAGE, seed=i, negative_prompt=n) for i, n in enumerate((None, "x", None))]
    alone = [driver.draw(image) for image in images]
    together = driver.drive([(0, driver.job(image)) for image in images])
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
