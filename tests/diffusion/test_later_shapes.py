"""With `flux.warm` minimal: what is warm before ready, the order of the rest, pictures of shapes
that were cold, and what may be compiled after ready.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from predictors import metrics
from predictors.compute.device.placement import Placement
from predictors.diffusion.model import LoadOptions
from predictors.diffusion.request import ImageParameters, LoraScale, SourcePicture
from predictors.errors import EngineFailed, ShapeNotWarm
from predictors.serving.warm_plan import WarmPlan
from tests.diffusion.driver import EngineDriver, drive_model, open_driver
from tests.diffusion.tiny_model import TinyModel, TinyPasses, tiny_decode
from tests.models.flux.random_adapters import random_adapter

IMAGE = ImageParameters("a red circle", num_inference_steps=2, seed=1)
WIDE = replace(IMAGE, width=96, height=64)
SHAPES: dict[str, Any] = {"sizes": "96x64,64x64", "default_size": "64x64", "slots": 2}


@pytest.fixture(scope="module", autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def minimal_driver(model: str, **settings: Any) -> tuple[EngineDriver, list[tuple[str, int, int]]]:
    """A driver that is ready, and what it has reported, also later."""
    progress: list[tuple[str, int, int]] = []
    driver = open_driver(model=model, warm="minimal", **SHAPES | settings)
    driver.engine.warm(lambda *shape: progress.append(shape))
    return driver, progress


def plan_of(driver: EngineDriver) -> WarmPlan:
    assert driver.engine.plan is not None
    return driver.engine.plan


def finish(driver: EngineDriver) -> list[str]:
    """Warm all that is left; the names in order."""
    plan, names = plan_of(driver), []
    while not plan.is_over:
        waiting: Any = plan.describe()["waiting"]
        names.append(waiting[0])
        plan.warm_next(is_idle=True)
    return names


def test_the_default_shape_is_first_and_what_makes_faster_is_last() -> None:
    tiers = {"tiers": "lossless,high", "default_tier": "high", "preview": "linear"}
    driver, progress = minimal_driver("order", **tiers, lora_max_active=1, lora_max_rank=8)
    assert progress == [("64x64 fp8 x1", 1, 19)]
    assert finish(driver) == [
        "64x64 base x1", "96x64 fp8 x1", "96x64 base x1",
        "64x64 fp8 x1 rank 16", "64x64 base x1 rank 16",
        "96x64 fp8 x1 rank 16", "96x64 base x1 rank 16",
        "edit of 96x64", "edit of 64x64", "projection for previews",
        "64x64 fp8 x2", "64x64 base x2", "96x64 fp8 x2", "96x64 base x2",
        "64x64 fp8 x2 rank 16", "64x64 base x2 rank 16",
        "96x64 fp8 x2 rank 16", "96x64 base x2 rank 16",
    ]  # fmt: skip
    assert progress[-1] == ("96x64 base x2 rank 16", 19, 19)


def test_the_widths_at_the_end_are_those_of_a_server_that_warmed_all() -> None:
    driver, _ = minimal_driver("widths")
    whole = open_driver(model="whole", **SHAPES)
    whole.engine.warm(lambda *_: None)
    assert driver.engine.describe()["widths"] == {"64x64 base": 1, "96x64 base": 1}
    assert driver.engine.describe()["warm_shapes"] == []
    finish(driver)
    for what in ("widths", "warm_shapes"):
        assert driver.engine.describe()[what] == whole.engine.describe()[what]
    assert driver.engine.describe()["widths"] == {"64x64 base": 2, "96x64 base": 2}


def test_pictures_of_cold_shapes_are_those_of_a_server_that_warmed_all(
    driver: EngineDriver,
) -> None:
    ours, _ = minimal_driver("cold", lora_max_active=0)
    images = [WIDE, IMAGE, replace(IMAGE, negative_prompt="blue"), replace(WIDE, width=80)]
    for image in images:
        assert np.array_equal(ours.draw(image), driver.draw(image))
    together = ours.drive([(0, ours.job(replace(WIDE, seed=seed))) for seed in (3, 4)])
    for picture, seed in zip(together, (3, 4), strict=True):
        assert np.array_equal(picture, driver.draw(replace(WIDE, seed=seed)))
    assert plan_of(ours).describe()["waiting"] == [
        "edit of 96x64", "edit of 64x64", "64x64 base x2", "96x64 base x2",
    ]  # fmt: skip


def test_a_request_waits_for_the_shapes_that_it_needs_alone() -> None:
    driver, progress = minimal_driver("needs", lora_max_active=1, lora_max_rank=8, preview="linear")
    driver.engine.add_adapter(random_adapter("a", 4))
    source = SourcePicture(np.zeros((64, 64, 3), np.uint8))
    asked = [
        replace(IMAGE, width=80),
        replace(IMAGE, loras=(LoraScale("a", 0.5),)),
        replace(IMAGE, source=source, strength=0.5),
        replace(IMAGE, num_inference_steps=4, partial_images=1),
        replace(WIDE, num_inference_steps=1),
    ]
    for image in asked:
        driver.draw(image)
    assert [name for name, _, _ in progress] == [
        "64x64 base x1", "64x64 base x1 rank 16", "edit of 64x64", "projection for previews",
        "96x64 base x1",
    ]  # fmt: skip


def test_a_default_picture_waits_for_nothing_though_another_tier_has_its_size() -> None:
    tiers = {"tiers": "lossless,high", "default_tier": "high"}
    driver, progress = minimal_driver("default", **tiers, lora_max_active=0)
    for seed in (1, 2):
        driver.draw(replace(IMAGE, seed=seed))
    assert [name for name, _, _ in progress] == ["64x64 fp8 x1"]
    driver.draw(replace(IMAGE, tier="lossless"))
    assert [name for name, _, _ in progress] == ["64x64 fp8 x1", "64x64 base x1"]


def test_planned_shapes_are_compiled_uncounted_and_traffic_compiles_nothing_more() -> None:
    driver, _ = minimal_driver("planned", compiler="aot_eager")
    start = metrics.start_compilations.labels("planned", "compiled")._value
    first = start.get()
    assert first > 0
    driver.draw(IMAGE)
    driver.draw(WIDE)
    finish(driver)
    driver.drive(
        [(0, driver.job(replace(image, seed=i))) for image in (IMAGE, WIDE) for i in (1, 2)]
    )
    assert driver.engine._guard.check() == 0
    assert driver.engine.describe()["captures_after_ready"] == 0
    assert metrics.recompilations_total.labels("planned")._value.get() == 0
    assert start.get() > first
    with torch.inference_mode():
        embedding = next(iter(driver.engine._prompts._entries.values()))[0]
        plan = driver.job(IMAGE).work.plan
        states = [driver.engine.runner.start(plan, [embedding], "base") for _ in range(3)]
        driver.engine.runner.denoise(states, 3)
    assert driver.engine._guard.check() > 0  # what nobody planned is counted


# -- failures --------------------------------------------------------------------------------------
class OneColourPasses(TinyPasses):
    """Decodes pictures of this height to one colour."""

    def __init__(self, height: int) -> None:
        self._rows = height // 8

    def decoder(self, *, is_promised: bool) -> Callable[[Tensor], Tensor]:
        def decode(latents: Tensor) -> Tensor:
            broken = latents.shape[2] == self._rows
            return tiny_decode(latents * 0 if broken else latents)

        return decode


class OneColourModel(TinyModel):
    def __init__(self, height: int) -> None:
        super().__init__()
        self._height = height

    def load(self, name: str, placement: Placement, options: LoadOptions) -> TinyPasses:
        return OneColourPasses(self._height)


def tiny_driver(height: int) -> EngineDriver:
    """Of 64x64, 64x32 and 32x32, of which one fails to warm."""
    placement = Placement(torch.device("cpu"), torch.float32, "off")
    sizes = {"sizes": "64x64,64x32,32x32", "default_size": "32x32", "min_side": 32, "slots": 2}
    return drive_model(OneColourModel(height), placement, warm="minimal", **sizes)


def test_a_size_that_fails_is_refused_and_others_are_drawn() -> None:
    driver = tiny_driver(height=64)
    driver.engine.warm(lambda *_: None)
    assert finish(driver) == [
        "64x64 base x1", "64x32 base x1", "32x32 base x2", "64x64 base x2", "64x32 base x2",
    ]  # fmt: skip
    assert plan_of(driver).describe()["failed"] == ["64x64 base x1", "64x64 base x2"]
    assert driver.engine.describe()["widths"] == {
        "64x64 base": 1, "64x32 base": 2, "32x32 base": 2,
    }  # fmt: skip
    refused = driver.job(replace(IMAGE, width=64, height=64))
    with pytest.raises(ShapeNotWarm, match="test does not serve 64x64 base x1 until"):
        driver.engine.validate(refused.work)
    with pytest.raises(ShapeNotWarm):
        driver.engine.admit(refused)
    assert not driver.engine.busy
    assert driver.draw(replace(IMAGE, width=64, height=32)).shape == (32, 64, 3)


def test_a_default_shape_that_fails_is_a_failed_start() -> None:
    driver = tiny_driver(height=32)
    with pytest.raises(EngineFailed, match="of one colour"):
        driver.engine.warm(lambda *_: None)
