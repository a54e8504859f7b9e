"""With torch.compile on, warm-up compiles every promised shape at every width, and traffic nothing
more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from predictors import metrics
from predictors.diffusion.request import BASE, ImageParameters, LoraScale
from tests.diffusion.driver import EngineDriver, open_driver
from tests.models.flux.random_adapters import random_adapter

IMAGE = ImageParameters("a red circle", num_inference_steps=3, seed=1)


SIZES = "64x64,96x64"


@pytest.fixture(scope="module", autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def warm_driver() -> tuple[EngineDriver, list[tuple[str, int, int]]]:
    """Two sizes at two widths, compiled with `aot_eager`, with an adapter, and the progress of
    warm-up."""
    progress: list[tuple[str, int, int]] = []
    lora = {"lora_max_active": 1, "lora_max_rank": 8}
    driver = open_driver(model="aot", compiler="aot_eager", slots=2, sizes=SIZES, **lora)
    driver.engine.warm(lambda *shape: progress.append(shape))
    driver.engine.add_adapter(random_adapter("a", 4))
    return driver, progress


def mixed_traffic(driver: EngineDriver) -> None:
    sizes = [(64, 64), (96, 64), (64, 96), (80, 80)]
    images = [
        replace(IMAGE, width=w, height=h, seed=i, num_inference_steps=1 + i % 4, negative_prompt=n)
        for i, ((w, h), n) in enumerate(product(sizes, (None, "blue", None)))
    ]
    images.append(replace(IMAGE, max_sequence_length=40))
    images.append(replace(IMAGE, guidance_scale=0.0, true_cfg_scale=3.0, negative_prompt="x"))
    images += [replace(image, loras=(LoraScale("a", 0.5),)) for image in images[::3]]
    driver.drive([(i // 2, driver.job(image)) for i, image in enumerate(images)])


def test_mixed_traffic_recompiles_nothing_after_warm_up_but_another_width_does(
    warm_driver: tuple[EngineDriver, list[tuple[str, int, int]]],
) -> None:
    driver, progress = warm_driver
    labels = [
        f"{size} base x{rows}{rank}"
        for size in SIZES.split(",")
        for rows in (1, 2)
        for rank in ("", " rank 16")
    ]
    assert progress == [(label, i, 8) for i, label in enumerate(labels, start=1)]
    mixed_traffic(driver)
    assert driver.engine._guard.check() == 0
    assert metrics.recompilations_total.labels("aot")._value.get() == 0
    embedding = next(iter(driver.engine._prompts._entries.values()))[0]
    plan = driver.job(IMAGE).work.plan
    with torch.inference_mode():
        states = [driver.engine.runner.start(plan, [embedding], BASE) for _ in range(3)]
        driver.engine.runner.denoise(states, 3)
    assert driver.engine._guard.check() == 5  # both kinds of block, the first of each, the way out
    assert metrics.recompilations_total.labels("aot")._value.get() == 5


def test_compiled_pictures_are_the_eager_ones(
    driver: EngineDriver, warm_driver: tuple[EngineDriver, list[tuple[str, int, int]]]
) -> None:
    ours, theirs = warm_driver[0].draw(IMAGE).astype(int), driver.draw(IMAGE).astype(int)
    assert np.abs(ours - theirs).max() <= 1


@pytest.mark.compiler
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # Inductor's own
def test_inductor_draws_the_same_and_recompiles_nothing(driver: EngineDriver) -> None:
    compiled = open_driver(model="inductor", compiler="inductor", slots=1)
    compiled.engine._max_rows = 1  # each width is another half minute of C++
    quick = {"compile_threads": 1, "cpp.vec_isa_ok": True}  # no worker pool, no trial programs
    with torch._inductor.config.patch(quick):
        compiled.engine.warm(lambda *_: None)
    oblong = replace(IMAGE, width=80)
    pictures = compiled.drive([(0, compiled.job(image)) for image in (IMAGE, oblong)])
    assert compiled.engine._guard.check() == 0
    for ours, image in zip(pictures, (IMAGE, oblong), strict=True):
        assert np.abs(ours.astype(int) - driver.draw(image).astype(int)).max() <= 1
