"""The work made of a request: form of the weights, steps that call the model, and their inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from predictors.diffusion.inputs import DiffusionWork, Preparer
from predictors.diffusion.limits import make_limits
from predictors.diffusion.model import StepShape
from predictors.diffusion.request import ImageParameters
from predictors.diffusion.sampling import plan_calls
from predictors.models.flux.model import FluxModel
from predictors.settings import FluxSettings
from tests.diffusion.driver import CHECKPOINT, FAST, EngineDriver

MODEL = FluxModel(CHECKPOINT)


def prepare(
    tier: str | None, num_steps: int = 28, dtype: torch.dtype = torch.float32, tiers: str = "auto"
) -> DiffusionWork:
    knobs: dict[str, Any] = FAST | {"tiers": tiers}
    limits = make_limits(MODEL.config, FluxSettings(**knobs))
    image = ImageParameters("a red circle", seed=5, num_inference_steps=num_steps, tier=tier)
    return Preparer(MODEL, dtype, limits.tiers).prepare(limits.resolve(image))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_turbo_calls_the_model_at_some_of_the_levels_of_lossless(dtype: torch.dtype) -> None:
    exact, turbo = prepare("lossless", dtype=dtype).plan, prepare("turbo", dtype=dtype).plan
    called = torch.tensor(plan_calls(28))
    assert (exact.is_exact, exact.num_calls, exact.num_steps) == (True, 28, 28)
    assert (turbo.is_exact, turbo.num_calls, turbo.num_steps) == (False, int(called.sum()), 28)
    assert torch.equal(turbo.timesteps, exact.timesteps[called])
    assert torch.equal(turbo.noise, exact.noise)
    assert (turbo.timesteps.dtype, turbo.dts.dtype) == (dtype, dtype)
    assert turbo.coefficients.dtype == torch.float32
    assert turbo.coefficients.shape == (turbo.num_calls, 2)
    assert abs(float(turbo.dts.sum()) + 1) < 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("num_steps", [1, 4, 8])
def test_few_steps_have_the_same_plan_in_every_tier(num_steps: int) -> None:
    exact, turbo = prepare("lossless", num_steps).plan, prepare("turbo", num_steps).plan
    assert turbo.is_exact
    for name in ("timesteps", "dts", "coefficients", "noise"):
        assert torch.equal(getattr(turbo, name), getattr(exact, name)), name


def test_pictures_of_other_weights_have_another_shape() -> None:
    loaded = "lossless,high,turbo"
    shapes = {tier: prepare(tier, tiers=loaded).shape for tier in loaded.split(",")}
    assert shapes == {
        "lossless": StepShape(16, 4, 4, "base"),
        "high": StepShape(16, 4, 4, "fp8"),
        "turbo": StepShape(16, 4, 4, "fp8"),
    }
    assert prepare("turbo").shape == prepare(None).shape == StepShape(16, 4, 4, "base")


def test_a_pictures_cost_follows_its_steps_and_tokens() -> None:
    one, four, turbo = prepare("lossless", 1), prepare("lossless", 4), prepare("turbo", 28)
    assert four.cost == 4 * one.cost > 0
    assert turbo.cost == int(sum(plan_calls(28))) * one.cost


@pytest.mark.parametrize("tier", ["lossless", "turbo"])
@pytest.mark.parametrize("steps", [1, 7, 28])
@pytest.mark.parametrize("negative", [None, "blue"])
def test_the_cost_of_a_request_is_that_of_its_work(
    driver: EngineDriver, tier: str, steps: int, negative: str | None
) -> None:
    image = ImageParameters(
        "x", negative, width=96, num_inference_steps=steps, tier=tier, max_sequence_length=24
    )
    request = driver.limits.resolve(image)
    work = driver.preparer.prepare(request)
    assert driver.preparer.cost(request) == work.cost
    assert driver.preparer.form_of(request) == work.cost_kind
