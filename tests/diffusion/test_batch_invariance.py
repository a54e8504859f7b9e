"""A picture's bytes do not depend on its neighbours: not on how many, not on when they joined, not
on what they want.

Run with several numbers of threads, since that is what splits rows differently: with seven, plain
batching changes bits (`test_plain_batching_does_change_bits` shows it), so these tests can fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from predictors.diffusion.request import ImageParameters
from predictors.models.flux.modules.operations import Carry, Plain, apart
from predictors.models.flux.modules.transformer import DoubleBlock, Shape, SingleBlock
from tests.diffusion.driver import EngineDriver, open_driver

THREADS = (1, 3)


@pytest.fixture(params=THREADS)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


IMAGES = [
    ImageParameters("a large red circle", num_inference_steps=5, seed=1),
    ImageParameters("a small blue square", num_inference_steps=3, seed=2, guidance_scale=1.5),
    ImageParameters("green star", num_inference_steps=7, seed=3, width=96),
    ImageParameters("yellow ring", num_inference_steps=4, seed=4, negative_prompt="red"),
    ImageParameters("a large red circle", num_inference_steps=2, seed=5, width=96),
    ImageParameters("", num_inference_steps=6, seed=6, guidance_scale=0.0),
    ImageParameters(
        "purple cross", num_inference_steps=3, seed=7, negative_prompt="", true_cfg_scale=2.0
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


def test_eight_different_jobs_get_the_bytes_they_get_alone(
    wide_driver: EngineDriver, threads: int
) -> None:
    alone = [wide_driver.draw(image) for image in IMAGES]
    assert len({a.tobytes() for a in alone}) == len(IMAGES)
    for name, turns in JOINS.items():
        jobs = [wide_driver.job(image, str(i)) for i, image in enumerate(IMAGES)]
        company = wide_driver.drive(list(zip(turns, jobs, strict=True)))
        for i, (a, b) in enumerate(zip(alone, company, strict=True)):
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


SHAPE = Shape(
    num_double=1, num_single=1, num_heads=4, head_dim=32, in_channels=16, out_channels=16,
    text_dim=16, pooled_dim=8, has_guidance=False, rotary_axes=(8, 12, 12),
)  # fmt: skip


def neighbours_change(rows: list[Tensor], run: Callable[[Tensor], Tensor]) -> bool:
    alone = [run(row[None])[0] for row in rows]
    widths = range(2, len(rows) + 1)
    together = [run(torch.stack(rows[:w])) for w in widths]
    return any(
        not torch.equal(batch[i], alone[i]) for batch in together for i in range(batch.shape[0])
    )


@pytest.mark.parametrize("num_tokens", [33, 97])
def test_blocks_keep_each_rows_bits(threads: int, num_tokens: int) -> None:
    torch.manual_seed(0)
    double, single = DoubleBlock(SHAPE), SingleBlock(SHAPE)
    rotary = torch.randn(2, 2 * num_tokens, 16)
    rows = list(torch.randn(5, 2 * num_tokens, SHAPE.dim))
    mods = torch.randn(5, 12 * SHAPE.dim)

    def both(x: Tensor, mods: Tensor) -> Tensor:
        ops = Plain()
        carry = double(ops, Carry(x, None, None), mods, rotary, num_tokens)
        carry = single(ops, carry, mods[:, : 3 * SHAPE.dim], rotary, num_tokens)
        return torch.stack((carry.tokens, carry.update))

    with torch.inference_mode():
        alone = [both(row[None], mods[i : i + 1])[:, 0] for i, row in enumerate(rows)]
        for width in range(2, 6):
            batch = both(torch.stack(rows[:width]), mods[:width])
            for i in range(width):
                assert torch.equal(batch[:, i], alone[i]), f"row {i} of {width}"


def test_plain_batching_does_change_bits_and_apart_does_not() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(7)
    try:
        torch.manual_seed(0)
        rows = list(torch.randn(8, 97, 512))

        def gelu(x: Tensor) -> Tensor:
            return F.gelu(x, approximate="tanh")

        assert neighbours_change(rows, gelu)
        assert not neighbours_change(rows, lambda x: apart(gelu, x))
    finally:
        torch.set_num_threads(before)


def test_batches_wider_than_one_are_really_formed(
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
