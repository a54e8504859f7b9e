"""Quality tiers through the whole predictor on the CPU: responses, refusals, equal bytes alone and
beside other tiers, and no wait or compilation while serving."""

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
from predictors.diffusion.predictor import DiffusionPredictor
from predictors.diffusion.request import HIGH, LOSSLESS, TIERS, TURBO, ImageParameters
from predictors.diffusion.sampling import plan_calls
from predictors.errors import InvalidRequest
from predictors.models.flux.model import FluxModel
from predictors.protocol.call import Call
from predictors.protocol.openai.images_body import read_images_body
from predictors.protocol.v2.values import Tensor, V2Request, V2Response
from predictors.settings import ComputeSettings, FluxSettings, Settings
from tests.diffusion.driver import CHECKPOINT, FAST, DiffusionJob, EngineDriver, open_driver
from tests.tools.syncs import count_host_syncs

ALL = ",".join(TIERS)
STEPS = 28
IMAGE = ImageParameters("a large red circle", num_inference_steps=12, seed=1)
PRECISIONS = {LOSSLESS: "float32", HIGH: "float8_e4m3fn", TURBO: "float8_e4m3fn"}

in_one_loop = pytest.mark.asyncio(loop_scope="module")


def calls_of(tier: str, num_steps: int) -> int:
    return sum(plan_calls(num_steps)) if tier == TURBO else num_steps


# -- whole predictors ------------------------------------------------------------------------------
def make_predictor(name: str, tiers: str) -> DiffusionPredictor:
    flux = FluxSettings(**(FAST | {"tiers": tiers, "slots": 8}))
    return DiffusionPredictor(
        name, FluxModel(CHECKPOINT), Settings(compute=ComputeSettings(device="cpu"), flux=flux)
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door() -> AsyncIterator[DiffusionPredictor]:
    made = make_predictor("tiers-door", ALL)
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


async def openai(model: DiffusionPredictor, **fields: Any) -> dict[str, Any]:
    body = read_images_body({"model": "x", "prompt": "a", "seed": 1, **fields})
    return await model.images(body, call())


def counted(model: str) -> float:
    steps: float = metrics.denoise_steps_total.labels(model)._value.get()
    return steps


@in_one_loop
@pytest.mark.parametrize("num_steps", [4, STEPS])
@pytest.mark.parametrize("tier", TIERS)
async def test_both_protocols_show_the_tier_and_the_counted_calls(
    door: DiffusionPredictor, tier: str, num_steps: int
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
    reply = await openai(door, tier=tier, num_inference_steps=num_steps)
    assert spent == expected["num_model_steps"]
    assert counted("tiers-door") - before == 2 * spent
    for says in (response.parameters, reply):
        assert {name: says[name] for name in expected} == expected
    assert base64.b64decode(reply["data"][0]["b64_json"]) == file(response)


def test_turbo_spends_half_to_two_thirds_of_the_usual_steps() -> None:
    assert STEPS / 2 <= calls_of(TURBO, STEPS) <= 2 * STEPS / 3


@in_one_loop
async def test_tiers_together_give_the_bytes_they_give_alone(door: DiffusionPredictor) -> None:
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
    made = make_predictor("tiers-few", loaded)
    await asyncio.to_thread(made.load)
    message = f"'{asked}' is not loaded here; loaded are {loaded.replace(',', ', ')}"
    with pytest.raises(InvalidRequest, match=message) as refusal:
        await made.infer(v2("a", tier=asked), call())
    assert refusal.value.param == "tier"
    body = read_images_body({"model": "x", "prompt": "a", "tier": asked})
    with pytest.raises(InvalidRequest, match=message) as refusal:
        await made.images(body, call())
    assert refusal.value.param == "tier"
    await asyncio.to_thread(made.stop)


# -- step by step ----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tiers_driver() -> EngineDriver:
    return open_driver(model="tiers", tiers=ALL, slots=4)


@pytest.fixture(scope="module")
def turbo_driver() -> EngineDriver:
    """Turbo on the base weights, as where nothing else is loaded."""
    return open_driver(model="tiers-base", tiers=TURBO)


def latents(driver: EngineDriver, image: ImageParameters) -> torch.Tensor:
    """After the last call of the model."""
    job = driver.job(image)
    assert driver.engine.admit(job)
    driver.engine.step([job])
    state = driver.state(job)
    while not state.is_finished:
        driver.engine.step([job])
    driver.engine.evict(job)
    return state.latents


def test_turbo_is_finite_with_any_number_of_steps(turbo_driver: EngineDriver) -> None:
    for num_steps in range(1, 51):
        found = latents(turbo_driver, replace(IMAGE, tier=TURBO, num_inference_steps=num_steps))
        assert found.isfinite().all(), num_steps
        assert 0.1 < found.std() < 10, num_steps


@pytest.mark.parametrize("tier", [HIGH, TURBO])
@pytest.mark.parametrize(("width", "height"), [(64, 64), (112, 80)])
def test_fp8_is_finite_at_any_size_and_number_of_steps(
    tiers_driver: EngineDriver, tier: str, width: int, height: int
) -> None:
    for num_steps in (1, 2, 8, 9, 50):
        image = replace(IMAGE, tier=tier, width=width, height=height, num_inference_steps=num_steps)
        found = latents(tiers_driver, image)
        assert found.isfinite().all(), num_steps
        assert 0.1 < found.std() < 10, num_steps


def test_turbo_and_high_end_near_lossless_and_fewer_steps_of_its_own_do_not(
    tiers_driver: EngineDriver,
) -> None:
    exact = latents(tiers_driver, replace(IMAGE, num_inference_steps=STEPS))

    def distance(tier: str, num_steps: int = STEPS) -> float:
        other = latents(tiers_driver, replace(IMAGE, tier=tier, num_inference_steps=num_steps))
        return float((other - exact).norm() / exact.norm())

    assert 0 < distance(HIGH) < 0.05
    assert 0 < distance(TURBO) < 0.05
    assert distance(TURBO) < distance(HIGH, calls_of(TURBO, STEPS))


@pytest.mark.parametrize("tier", [HIGH, TURBO])
def test_true_guidance_moves_away_from_the_negative_prompt(
    tiers_driver: EngineDriver, tier: str
) -> None:
    def drawn(negative: str, scale: float) -> torch.Tensor:
        image = replace(IMAGE, tier=tier, negative_prompt=negative, true_cfg_scale=scale)
        return latents(tiers_driver, image)

    same, twice = (drawn(IMAGE.prompt, scale) for scale in (2.0, 4.0))
    other = drawn("a blue square", 2.0)
    assert torch.equal(same, twice)  # away from the very prompt is nowhere, by any scale
    assert other.isfinite().all()
    assert (other - same).norm() > 0.1 * same.norm()


@pytest.mark.parametrize("negative", [None, "blue"])
@pytest.mark.parametrize("tier", TIERS)
def test_a_step_of_no_tier_waits_or_uploads(
    tiers_driver: EngineDriver, tier: str, negative: str | None
) -> None:
    image = replace(IMAGE, tier=tier, negative_prompt=negative)
    jobs = [tiers_driver.job(replace(image, seed=seed)) for seed in (1, 2)]
    assert all(map(tiers_driver.engine.admit, jobs))
    start_all(tiers_driver, jobs)
    state = tiers_driver.state(jobs[0])
    while not state.is_finished:
        with count_host_syncs() as found:
            tiers_driver.engine.step(jobs[:1])
        assert found.syncs == 0, dict(found)
    assert state.calls_done == calls_of(tier, 12)
    with count_host_syncs() as found:
        tiers_driver.engine.step(jobs[:1])
    assert found["Tensor.numpy"] == found.syncs == 1  # the counter sees a finished picture
    tiers_driver.drive([])
    assert all(job.done for job in jobs)


def start_all(driver: EngineDriver, jobs: Sequence[DiffusionJob]) -> None:
    """First steps, which encode prompts and upload."""
    for job in jobs:
        driver.engine.step([job])


# -- compiled --------------------------------------------------------------------------------------
@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
def test_mixed_tiers_after_warm_up_compile_and_capture_nothing() -> None:
    driver = open_driver(model="tiers-compiled", compiler="eager", slots=2, tiers=ALL)
    runner = driver.engine.runner
    runner._max_rows = 1  # each width would be compiled once more
    driver.engine.warm(lambda *_: None)
    images = [
        replace(IMAGE, tier=tier, seed=i, num_inference_steps=n, negative_prompt=negative)
        for i, (tier, n, negative) in enumerate(product(TIERS, (2, 9), (None, "blue")))
    ]
    pictures = driver.drive([(i // 2, driver.job(image)) for i, image in enumerate(images)])
    assert len({picture.tobytes() for picture in pictures}) == len(images)
    assert compiled_and_captured() == (0, 0)
    state = next_canvas(driver)
    with torch.inference_mode():
        runner.denoise([state] * 2, 2)  # a width that was not warmed
    driver.engine._guard.check()
    runner._graphs.capture(torch.abs, (state.latents,))
    assert compiled_and_captured() == (5, 1)  # both counters are alive


def next_canvas(driver: EngineDriver) -> Any:
    job = driver.job(replace(IMAGE, tier=TURBO))
    assert driver.engine.admit(job)
    driver.engine.step([job])
    return driver.state(job)


def compiled_and_captured() -> tuple[float, float]:
    return (
        metrics.recompilations_total.labels("tiers-compiled")._value.get(),
        metrics.graph_captures_total.labels("tiers-compiled")._value.get(),
    )
