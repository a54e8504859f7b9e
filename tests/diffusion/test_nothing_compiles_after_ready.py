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
from predictors.diffusion.request import BASE, Wish
from tests.diffusion.room import Room, open_room

WISH = Wish("a red circle", num_inference_steps=3, seed=1)


SIZES = "64x64,96x64"


@pytest.fixture(scope="module", autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def warm_room() -> tuple[Room, list[tuple[str, int, int]]]:
    """Two sizes at two widths, compiled with `aot_eager`, and what warm-up told."""
    told: list[tuple[str, int, int]] = []
    room = open_room(model="aot", compiler="aot_eager", slots=2, sizes=SIZES)
    room.engine.warm(lambda *progress: told.append(progress))
    return room, told


def mixed_traffic(room: Room) -> None:
    sizes = [(64, 64), (96, 64), (64, 96), (80, 80)]
    wishes = [
        replace(WISH, width=w, height=h, seed=i, num_inference_steps=1 + i % 4, negative_prompt=n)
        for i, ((w, h), n) in enumerate(product(sizes, (None, "blue", None)))
    ]
    wishes.append(replace(WISH, max_sequence_length=40))
    wishes.append(replace(WISH, guidance_scale=0.0, true_cfg_scale=3.0, negative_prompt=""))
    room.drive([(i // 2, room.job(wish)) for i, wish in enumerate(wishes)])


def test_mixed_traffic_after_warm_up_recompiles_nothing_and_an_unwarmed_width_would_show(
    warm_room: tuple[Room, list[tuple[str, int, int]]],
) -> None:
    room, told = warm_room
    labels = [f"{size} base x{rows}" for size in SIZES.split(",") for rows in (1, 2)]
    assert told == [(label, i, 4) for i, label in enumerate(labels, start=1)]
    mixed_traffic(room)
    assert room.engine._guard.check() == 0
    assert metrics.recompilations_total.labels("aot")._value.get() == 0
    assert room.engine._runner is not None
    embedding = next(iter(room.engine._prompts._entries.values()))[0]
    course = room.job(WISH).work.course
    with torch.inference_mode():
        canvases = [room.engine._runner.begin(course, [embedding], BASE) for _ in range(3)]
        room.engine._runner.denoise(canvases, 3)
    assert room.engine._guard.check() == 5  # both kinds of block, the first of each, the way out
    assert metrics.recompilations_total.labels("aot")._value.get() == 5


def test_compiled_pictures_are_the_eager_ones(
    room: Room, warm_room: tuple[Room, list[tuple[str, int, int]]]
) -> None:
    ours, theirs = warm_room[0].draw(WISH).astype(int), room.draw(WISH).astype(int)
    assert np.abs(ours - theirs).max() <= 1


@pytest.mark.compiler
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # Inductor's own
def test_inductor_draws_the_same_and_recompiles_nothing(room: Room) -> None:
    compiled = open_room(model="inductor", compiler="inductor", slots=1)
    compiled.engine._max_rows = 1  # each width is another half minute of C++
    quick = {"compile_threads": 1, "cpp.vec_isa_ok": True}  # no worker pool, no trial programs
    with torch._inductor.config.patch(quick):
        compiled.engine.warm(lambda *_: None)
    oblong = replace(WISH, width=80)
    pictures = compiled.drive([(0, compiled.job(wish)) for wish in (WISH, oblong)])
    assert compiled.engine._guard.check() == 0
    for ours, wish in zip(pictures, (WISH, oblong), strict=True):
        assert np.abs(ours.astype(int) - room.draw(wish).astype(int)).max() <= 1
