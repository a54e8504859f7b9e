"""An engine that shares its card cuts its steps, draws the same pictures, and leaves the card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from predictors.compute.device.graphs import run_pieces
from predictors.compute.device.placement import Placement
from predictors.compute.device.sharing import SharedCard, SharingPolicy
from predictors.diffusion.model import PiecewisePasses
from predictors.diffusion.request import BASE, FP8, ImageParameters
from tests.diffusion.driver import EngineDriver, open_driver, unloaded_driver

IMAGE = ImageParameters("a red circle", num_inference_steps=3, seed=5)
PIECES = 3


class CountedCard(SharedCard):
    """Counts the turns of pictures."""

    count = 0

    @contextmanager
    def picture_turn(self) -> Iterator[None]:
        self.count += 1
        with super().picture_turn():
            yield


def shared_card() -> CountedCard:
    placement = Placement(torch.device("cpu"), torch.float32, "off")
    return CountedCard(placement, SharingPolicy("turns", 0.8, 0.03), PIECES)


def opened(card: SharedCard) -> EngineDriver:
    driver = unloaded_driver(model="flux-shared")
    driver.engine.share(card)
    driver.engine.load()
    return driver


def test_a_picture_in_pieces_has_the_bytes_of_one_in_whole_steps(driver: EngineDriver) -> None:
    card = shared_card()
    shared = opened(card)
    drawn = shared.draw(IMAGE)
    assert np.array_equal(drawn, driver.draw(IMAGE))
    assert card.count == 1 + PIECES * 3 + 1  # encoders, steps, decoder
    shared.engine.close()


def test_pictures_are_owed_time_from_admission_until_the_last_one_has_left() -> None:
    card = shared_card()
    shared = opened(card)
    jobs = [shared.job(IMAGE), shared.job(replace(IMAGE, seed=6))]
    for job in jobs:
        assert shared.engine.admit(job)
    card.tokens_took(0.001)
    shared.engine.evict(jobs[0])
    assert card.owed_s > 0
    shared.engine.evict(jobs[1])
    assert card.owed_s == 0
    shared.engine.close()


def test_an_engine_that_ends_with_pictures_in_progress_leaves_the_card() -> None:
    card = shared_card()
    shared = opened(card)
    job = shared.job(IMAGE)
    assert shared.engine.admit(job)
    shared.engine.step([job])
    card.tokens_took(0.001)
    assert card.owed_s > 0
    shared.engine.close()
    assert card.owed_s == 0
    with card.token_turn("tokens"):
        assert card.is_next("tokens")


@pytest.mark.parametrize("form", [BASE, FP8])
@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_a_pass_in_pieces_has_the_bits_of_the_whole_one(form: str, count: int) -> None:
    engine = open_driver(model="flux-pieces", tiers="lossless,high").engine
    passes = engine.runner.passes
    assert isinstance(passes, PiecewisePasses)
    pieces = passes.velocity_pieces(form, count, is_promised=True, is_adapted=False)
    config = passes.parts.transformers[form].shape  # type: ignore[attr-defined]
    chance = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 16, config.in_channels, generator=chance)
    context = torch.randn(2, 8, config.dim, generator=chance)
    modulation = torch.randn(2, config.modulation_dim, generator=chance)
    inputs = (latents, context, modulation, passes.positions(8, 4, 4))
    with torch.inference_mode():
        whole = passes.velocity(form, is_promised=True)(*inputs)
        assert torch.equal(run_pieces(pieces, inputs), whole)
    assert len(pieces) == min(count, config.num_blocks)
    engine.close()
