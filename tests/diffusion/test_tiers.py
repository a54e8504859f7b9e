"""Quality tiers through the real room on the CPU: what the answers say, who is refused, that tiers
share a room without touching each other's bytes, and that none waits or compiles while serving."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import pytest_asyncio
import torch

from predictors import metrics
from predictors.diffusion.predictor import FluxPredictor
from predictors.diffusion.request import HIGH, LOSSLESS, TIERS, TURBO, Wish
from predictors.diffusion.sampling import plan
from predictors.errors import InvalidRequest
from predictors.protocol.call import Call
from predictors.protocol.openai.images_body import read_images_body
from predictors.protocol.openai.routes import IMAGES
from predictors.protocol.v2.values import Tensor, V2Request, V2Response
from predictors.settings import ComputeSettings, FluxSettings, Settings
from tests.diffusion.room import CHECKPOINT, FAST, FluxJob, Room, open_room
from tests.tools.syncs import count_host_syncs

ALL = ",".join(TIERS)
STEPS = 28
WISH = Wish("a large red circle", num_inference_steps=12, seed=1)
PRECISIONS = {LOSSLESS: "float32", HIGH: "float8_e4m3fn", TURBO: "float8_e4m3fn"}

in_one_loop = pytest.mark.asyncio(loop_scope="module")


def calls_of(tier: str, num_steps: int) -> int:
    return sum(plan(num_steps)) if tier == TURBO else num_steps


# -- behind the door -------------------------------------------------------------------------------
def behind_the_door(name: str, tiers: str) -> FluxPredictor:
    flux = FluxSettings(**(FAST | {"tiers": tiers, "slots": 8}))
    return FluxPredictor(
        name, CHECKPOINT, Settings(compute=ComputeSettings(device="cpu"), flux=flux)
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door() -> AsyncIterator[FluxPredictor]:
    made = behind_the_door("tiers-door", ALL)
    await asyncio.to_thread(made.load)
    yield made
    await asyncio.to_thread(made.stop)


def v2(prompt: str, **parameters: int | float | str) -> V2Request:
    rows = [Tensor("prompt", "BYTES", (1,), [prompt.encode()])]
    if "negative_prompt" in parameters:
        negative = str(parameters.pop("negative_prompt")).encode()
        rows.append(Tensor("negative_prompt", "BYTES", (1,), [negative]))
    return V2Request("tiers-door", "", tuple(rows), {"seed": 1, **parameters})


def call() -> Call:
    return Call({}, protocol="v2_rest")


def file(response: V2Response) -> object:
    return response.outputs[0].data[0]


async def openai(model: FluxPredictor, **fields: Any) -> dict[str, Any]:
    body = read_images_body({"model": "x", "prompt": "a", "seed": 1, **fields})
    return await model.images(body, call())


def counted(model: str) -> float:
    steps: float = metrics.denoise_steps_total.labels(model)._value.get()
    return steps


@in_one_loop
@pytest.mark.parametrize("num_steps", [4, STEPS])
@pytest.mark.parametrize("tier", TIERS)
async def test_both_protocols_tell_the_tier_and_the_calls_that_were_counted(
    door: FluxPredictor, tier: str, num_steps: int
) -> None:
    expected = {
        "tier": tier,
        "precision": PRECISIONS[tier],
        "num_inference_steps": num_steps,
        "num_model_steps": calls_of(tier, num_steps),
    }
    before = counted("tiers-door")
    response = await door.infer(v2("a", tier=tier, num_inference_steps=num_steps), call())
    spent = counted("tiers-door") - before
    reply = await openai(door, quality=tier, num_inference_steps=num_steps)
    assert spent == expected["num_model_steps"]
    assert counted("tiers-door") - before == 2 * spent
    for says in (response.parameters, reply):
        assert {name: says[name] for name in expected} == expected
    assert base64.b64decode(reply["data"][0]["b64_json"]) == file(response)


def test_turbo_spends_half_to_two_thirds_of_the_usual_steps() -> None:
    assert STEPS / 2 <= calls_of(TURBO, STEPS) <= 2 * STEPS / 3


@in_one_loop
async def test_tiers_at_once_get_the_bytes_they_get_alone(door: FluxPredictor) -> None:
    extras: list[dict[str, Any]] = [{}, {"negative_prompt": "blue", "true_cfg_scale": 3.0}]
    asked = [
        v2("a star", tier=tier, num_inference_steps=n, width=width, **extra)
        for tier, (n, width), extra in product(TIERS, [(9, 64), (10, 80)], extras)
    ]
    alone = [file(await door.infer(request, call())) for request in asked]
    assert len(set(alone)) == len(asked)  # each tier draws its own picture
    together = await asyncio.gather(*(door.infer(request, call()) for request in asked[::-1]))
    assert [file(response) for response in together][::-1] == alone


@in_one_loop
@pytest.mark.parametrize(
    ("loaded", "asked"), [("lossless,turbo", HIGH), ("high", LOSSLESS), ("lossless", TURBO)]
)
async def test_a_tier_that_is_not_loaded_is_refused_with_those_that_are(
    loaded: str, asked: str
) -> None:
    made = behind_the_door("tiers-few", loaded)
    await asyncio.to_thread(made.load)
    message = f"'{asked}' is not loaded here; loaded are {loaded.replace(',', ', ')}"
    with pytest.raises(InvalidRequest, match=message) as refusal:
        await made.infer(v2("a", tier=asked), call())
    assert refusal.value.param == "tier"
    for param in ("tier", "quality"):
        body = read_images_body({"model": "x", "prompt": "a", param: asked})
        with pytest.raises(InvalidRequest, match=message) as refusal:
            await IMAGES.reply(made, body, call())
        assert refusal.value.param == param
    await asyncio.to_thread(made.stop)


# -- turn by turn ----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tiers_room() -> Room:
    return open_room(model="tiers", tiers=ALL, slots=4)


@pytest.fixture(scope="module")
def turbo_room() -> Room:
    """Turbo on the base weights, as where nothing else is loaded."""
    return open_room(model="tiers-base", tiers=TURBO)


def latents(room: Room, wish: Wish) -> torch.Tensor:
    """After the last call of the model."""
    job = room.job(wish)
    assert room.engine.admit(job)
    room.engine.step([job])
    canvas = room.canvas(job)
    while not canvas.is_finished:
        room.engine.step([job])
    room.engine.evict(job)
    return canvas.latents


def test_no_number_of_steps_breaks_turbo(turbo_room: Room) -> None:
    for num_steps in range(1, 51):
        found = latents(turbo_room, replace(WISH, tier=TURBO, num_inference_steps=num_steps))
        assert found.isfinite().all(), num_steps
        assert 0.1 < found.std() < 10, num_steps


@pytest.mark.parametrize("tier", [HIGH, TURBO])
@pytest.mark.parametrize(("width", "height"), [(64, 64), (112, 80)])
def test_fp8_breaks_at_no_size_and_no_number_of_steps(
    tiers_room: Room, tier: str, width: int, height: int
) -> None:
    for num_steps in (1, 2, 8, 9, 50):
        wish = replace(WISH, tier=tier, width=width, height=height, num_inference_steps=num_steps)
        found = latents(tiers_room, wish)
        assert found.isfinite().all(), num_steps
        assert 0.1 < found.std() < 10, num_steps


def test_turbo_and_high_end_near_lossless_and_fewer_steps_of_its_own_do_not(
    tiers_room: Room,
) -> None:
    exact = latents(tiers_room, replace(WISH, num_inference_steps=STEPS))

    def distance(tier: str, num_steps: int = STEPS) -> float:
        other = latents(tiers_room, replace(WISH, tier=tier, num_inference_steps=num_steps))
        return float((other - exact).norm() / exact.norm())

    assert 0 < distance(HIGH) < 0.05
    assert 0 < distance(TURBO) < 0.05
    assert distance(TURBO) < distance(HIGH, calls_of(TURBO, STEPS))


@pytest.mark.parametrize("tier", [HIGH, TURBO])
def test_true_guidance_leads_away_from_the_negative_prompt(tiers_room: Room, tier: str) -> None:
    def drawn(negative: str, scale: float) -> torch.Tensor:
        wish = replace(WISH, tier=tier, negative_prompt=negative, true_cfg_scale=scale)
        return latents(tiers_room, wish)

    same, twice = (drawn(WISH.prompt, scale) for scale in (2.0, 4.0))
    other = drawn("a blue square", 2.0)
    assert torch.equal(same, twice)  # away from the very prompt is nowhere, by any scale
    assert other.isfinite().all()
    assert (other - same).norm() > 0.1 * same.norm()


@pytest.mark.parametrize("negative", [None, "blue"])
@pytest.mark.parametrize("tier", TIERS)
def test_a_step_of_no_tier_waits_or_uploads(
    tiers_room: Room, tier: str, negative: str | None
) -> None:
    wish = replace(WISH, tier=tier, negative_prompt=negative)
    jobs = [tiers_room.job(replace(wish, seed=seed)) for seed in (1, 2)]
    assert all(map(tiers_room.engine.admit, jobs))
    begin_all(tiers_room, jobs)
    canvas = tiers_room.canvas(jobs[0])
    while not canvas.is_finished:
        with count_host_syncs() as found:
            tiers_room.engine.step(jobs[:1])
        assert found.syncs == 0, dict(found)
    assert canvas.index == calls_of(tier, 12)
    with count_host_syncs() as found:
        tiers_room.engine.step(jobs[:1])
    assert found["Tensor.numpy"] == found.syncs == 1  # the counter sees a finished picture
    tiers_room.drive([])
    assert all(job.done for job in jobs)


def begin_all(room: Room, jobs: Sequence[FluxJob]) -> None:
    """First turns, which encode prompts and upload."""
    for job in jobs:
        room.engine.step([job])


# -- compiled --------------------------------------------------------------------------------------
@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
def test_mixed_tiers_after_warm_up_compile_and_capture_nothing() -> None:
    room = open_room(model="tiers-compiled", compiler="eager", slots=2, tiers=ALL)
    runner = room.engine._runner
    assert runner is not None
    runner._max_rows = 1  # each width would be compiled once more
    room.engine.warm(lambda *_: None)
    wishes = [
        replace(WISH, tier=tier, seed=i, num_inference_steps=n, negative_prompt=negative)
        for i, (tier, n, negative) in enumerate(product(TIERS, (2, 9), (None, "blue")))
    ]
    pictures = room.drive([(i // 2, room.job(wish)) for i, wish in enumerate(wishes)])
    assert len({picture.tobytes() for picture in pictures}) == len(wishes)
    assert compiled_and_captured() == (0, 0)
    canvas = next_canvas(room)
    with torch.inference_mode():
        runner.denoise([canvas] * 2, 2)  # a width that was not warmed
    room.engine._guard.check()
    runner._graphs.capture(torch.abs, (canvas.latents,))
    assert compiled_and_captured() == (5, 1)  # both counters are alive


def next_canvas(room: Room) -> Any:
    job = room.job(replace(WISH, tier=TURBO))
    assert room.engine.admit(job)
    room.engine.step([job])
    return room.canvas(job)


def compiled_and_captured() -> tuple[float, float]:
    return (
        metrics.recompilations_total.labels("tiers-compiled")._value.get(),
        metrics.graph_captures_total.labels("tiers-compiled")._value.get(),
    )
