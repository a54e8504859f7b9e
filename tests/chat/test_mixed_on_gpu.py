"""Passes over prompts and rows that decode, on a GPU: the tokens of two passes and of the CPU, no
wait of the host, nothing captured after ready.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chat.mixed_traffic import (
    LaunchedPasses,
    alone_in,
    answers_of,
    assert_alike,
    shuffled,
)
from tests.chat.room import Room
from tests.tools.syncs import no_host_syncs

pytestmark = pytest.mark.gpu

SMALL: dict[str, Any] = {"max_context": 256, "max_pixels": 112 * 112}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def mixing(request: pytest.FixtureRequest, wild_checkpoint: Path) -> Iterator[Room]:
    settings = {**SMALL, "prefill_chunk": 64, "page_tokens": 16, "slots": 4}
    room = Room.open(wild_checkpoint, "auto", "cuda", dtype=request.param, **settings)
    yield room
    room.engine.close()


def test_random_queues_get_the_tokens_of_the_cpu(
    mixing: Room, wild_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mixing.engine.describe()["precision"] != "float32":
        pytest.skip("tokens of bfloat16 differ")
    alone = alone_in(Room.open(wild_checkpoint, **SMALL))
    launched = LaunchedPasses(monkeypatch)
    for seed in range(20):
        chance = random.Random(seed)
        assert_alike(answers_of(mixing, shuffled(chance), chance), alone)
    assert len(launched.sizes) > 40


def test_a_pass_has_the_tokens_of_two_passes(mixing: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 nearly so: the weights are random, and the matmuls have other shapes."""
    launched = LaunchedPasses(monkeypatch)
    same, total = 0, 0
    for seed in range(10):
        found = answers_of(mixing, shuffled(random.Random(seed)), random.Random(seed))
        count = len(launched.sizes)
        widths, mixing.runner.mixed.widths = mixing.runner.mixed.widths, ()
        apart = answers_of(mixing, shuffled(random.Random(seed)), random.Random(seed))
        mixing.runner.mixed.widths = widths
        assert len(launched.sizes) == count > 0
        pairs = [(found[i][0], apart[i][0]) for i in found]
        same += sum(a == b for a, b in pairs)
        total += len(pairs)
    is_exact = mixing.engine.describe()["precision"] == "float32"
    assert same == total if is_exact else same >= 0.7 * total


def test_the_host_waits_for_nothing_and_nothing_is_captured(
    mixing: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = LaunchedPasses(monkeypatch)
    before = mixing.engine.guard.check()  # another test's engine compiled on this thread too
    with no_host_syncs():
        answers_of(mixing, shuffled(random.Random(1)), random.Random(1))
    assert launched.sizes
    assert mixing.engine.guard.check() == before
    assert mixing.engine._graphs.count_after_ready == 0
