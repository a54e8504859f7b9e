"""Adapters on a GPU: graphs of their own, the tokens of the CPU, nothing captured or read back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.chat.adapters.conftest import TABLES, Adapted, adapted
from tests.chat.room import CHECKPOINT, Room, chat, png
from tests.tools.syncs import no_host_syncs

pytestmark = pytest.mark.gpu

ASKED = chat(png(3, 120, 90), "describe this picture", max_tokens=12)
MIXES: tuple[dict[str, float], ...] = (
    {}, {"words": 1.0}, {"eyes": 1.0}, {"both": 1.0}, {"words": 0.5, "eyes": -0.75},
)  # fmt: skip


@pytest.fixture(scope="module", params=["float32", "bfloat16", "fp8"])
def gpu(request: pytest.FixtureRequest, adapters: Adapted) -> Adapted:
    precision = {"precision": "fp8"} if request.param == "fp8" else {}
    dtype = "float32" if request.param == "float32" else "bfloat16"
    room = Room.open(CHECKPOINT, "auto", "cuda", dtype=dtype, **TABLES, **precision)
    return adapted(room, adapters.folders)


def test_rows_with_other_adapters_get_their_tokens_together_and_alone(
    gpu: Adapted, adapters: Adapted
) -> None:
    requests = [gpu.request(ASKED, **scales) for scales in MIXES]
    together = gpu.room.answers(requests)
    if gpu.room.engine._placement.dtype == torch.float32:
        asked = [adapters.request(ASKED, **scales) for scales in MIXES]
        assert together == [adapters.room.answer(request) for request in asked]
        assert [gpu.room.answer(request) for request in requests] == together
    assert gpu.room.engine.describe()["captures_after_ready"] == 0


def test_an_adapted_step_reads_nothing_back(gpu: Adapted) -> None:
    long = replace(ASKED, max_tokens=30, ignore_eos=True)
    for scales in MIXES:
        gpu.room.start(gpu.request(long, **scales))
    for _ in range(6):
        gpu.room.engine.step(gpu.room.engine.active)
    with no_host_syncs():
        for _ in range(4):
            gpu.room.engine.step(gpu.room.engine.active)
    gpu.room.finish()


def test_rows_of_the_widest_step_are_equal_in_bits(adapters: Adapted) -> None:
    """Where answers must not depend on others, those without adapters included."""
    room = Room.open(CHECKPOINT, "auto", "cuda", dtype="bfloat16", deterministic="on", **TABLES)
    mixed = adapted(room, adapters.folders)
    requests = [mixed.request(ASKED, **scales) for scales in MIXES]
    alone = [room.answer(request) for request in requests]
    assert room.answers(requests) == alone
