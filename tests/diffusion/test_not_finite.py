"""A picture that is not finite is a failed job or a failed start, never a black picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from predictors.compute.syncs import count_host_syncs
from predictors.diffusion.request import Wish
from predictors.diffusion.runner import Runner
from predictors.errors import EngineFailed, StepFailed
from predictors.models.flux.modules.decoder import MAX_LEVEL, PLAIN, develop, develop_checked
from predictors.models.flux.weights import Parts
from predictors.protocol.faults import fault_of
from tests.diffusion.room import FluxJob, Room, open_room, picture

RED = Wish("a red circle", num_inference_steps=3, seed=1)
BAD = [float("nan"), float("inf"), float("-inf")]


@pytest.fixture(scope="module")
def own() -> Room:
    """A room whose weights may be spoilt."""
    return open_room(slots=3)


@pytest.fixture(autouse=True)
def empty(own: Room) -> None:
    for job in own.engine.active:
        own.engine.evict(job)


def started(room: Room, count: int = 3) -> list[FluxJob]:
    jobs = [room.job(replace(RED, seed=seed), str(seed)) for seed in range(count)]
    for job in jobs:
        assert room.engine.admit(job)
    room.engine.step(jobs)
    room.engine.step(jobs)
    return jobs


def finish(room: Room) -> None:
    while room.engine.busy:
        room.engine.step(room.engine.active)


def parts(room: Room) -> Parts:
    assert isinstance(room.engine._runner, Runner)
    return room.engine._runner._parts


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("place", ["one latent", "all latents"])
def test_a_row_of_a_batch_that_is_not_finite_fails_alone(
    own: Room, value: float, place: str
) -> None:
    alone = [own.draw(replace(RED, seed=seed)) for seed in range(3)]
    jobs = started(own)
    latents = own.canvas(jobs[1]).latents = own.canvas(jobs[1]).latents.clone()
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
    room = open_room(slots=2, tiers="lossless,high")
    tier = "lossless" if form == "base" else "high"
    wish = replace(RED, tier=tier)
    alone = room.draw(wish)
    (prompt,) = room.job(wish).work.prompts
    kept = room.engine._prompts.get(prompt.key)
    assert kept is not None
    with torch.inference_mode():
        kept.context[3] = float("nan")
    job, other = room.job(wish), room.job(replace(wish, prompt="a blue square"))
    assert room.engine.admit(job)
    assert room.engine.admit(other)
    finish(room)
    assert isinstance(job.error, StepFailed)
    assert other.error is None
    assert prompt.key not in room.engine._prompts
    assert np.array_equal(room.draw(wish), alone)


@pytest.mark.parametrize("value", BAD)
def test_a_decoder_that_makes_something_not_finite_fails_the_picture(
    own: Room, value: float
) -> None:
    layer = parts(own).decoder.leave
    assert layer.bias is not None
    before = layer.bias[0].item()
    job = started(own, 1)[0]
    try:
        layer.bias[0] = value
        finish(own)
    finally:
        layer.bias[0] = before
    assert isinstance(job.error, StepFailed)


def test_the_verdict_comes_with_the_picture_and_costs_no_other_wait(own: Room) -> None:
    job = own.job(replace(RED, num_inference_steps=1))
    assert own.engine.admit(job)
    own.engine.step([job])
    own.canvas(job).latents = torch.full_like(own.canvas(job).latents, float("nan"))
    with count_host_syncs() as found:
        own.engine.step([job])
    assert isinstance(job.error, StepFailed)
    assert found.syncs == 1


@pytest.mark.parametrize("value", [0.0, *BAD])
def test_checked_levels_are_the_levels_and_a_verdict(own: Room, value: float) -> None:
    decoder, latents = parts(own).decoder, torch.randn(1, 16, 6, 4)
    latents[0, 3, 2, 1] = value
    with torch.inference_mode():
        levels = develop(decoder, latents, PLAIN)
        checked = develop_checked(decoder, latents, PLAIN)
    assert checked[-1] == (value == 0.0)
    if value == 0.0:
        assert torch.equal(checked[:-1].view(levels.shape), levels)
        assert levels.max() <= MAX_LEVEL


# -- warm-up -------------------------------------------------------------------------------------
WEIGHTS: dict[str, Callable[[Parts], torch.Tensor]] = {
    "clip": lambda p: p.clip.final_layer_norm.weight,
    "t5": lambda p: p.t5.encoder.final_layer_norm.weight,
    "transformer": lambda p: p.transformers["base"].ends.leave.weight,
    "vae": lambda p: p.decoder.enter.weight,
}


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("part", WEIGHTS)
def test_a_weight_that_is_not_finite_fails_the_start(part: str, value: float) -> None:
    room = open_room()
    with torch.inference_mode():
        WEIGHTS[part](parts(room)).view(-1)[0] = value
    with pytest.raises(EngineFailed, match=r"64x64 base.* (is|are) not finite; the weights are"):
        room.engine.warm(lambda *_: None)


def test_a_picture_of_one_colour_fails_the_start() -> None:
    room = open_room()
    with torch.inference_mode():
        nn.init.zeros_(parts(room).decoder.leave.weight)
        nn.init.zeros_(parts(room).decoder.leave.bias)
    with pytest.raises(EngineFailed, match="of one colour"):
        room.engine.warm(lambda *_: None)


def test_a_dtype_too_narrow_fails_the_start() -> None:
    room = open_room(dtype=torch.float16)
    with torch.inference_mode():
        parts(room).decoder.enter.weight.mul_(1e5)
    with pytest.raises(EngineFailed, match="not finite"):
        room.engine.warm(lambda *_: None)
