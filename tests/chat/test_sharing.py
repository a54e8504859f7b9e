"""A chat engine that shares its card takes a turn for each step that launches something, answers as
alone, and plans its pages within its part of the memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from predictors.chat.limits import free_bytes
from predictors.compute.device.placement import Placement
from predictors.compute.device.sharing import SharedCard, SharingPolicy
from predictors.settings import InvalidSetting, QwenVLSettings
from tests.chat.room import Room, chat

CUDA = Placement(torch.device("cuda"), torch.bfloat16, "inductor")
GIB = 2**30


class CountedCard(SharedCard):
    """Counts the turns of tokens."""

    count = 0

    @contextmanager
    def token_turn(self, owner: object) -> Iterator[None]:
        self.count += 1
        with super().token_turn(owner):
            yield


@pytest.mark.parametrize("is_ahead", [False, True])
def test_a_shared_engine_answers_as_alone_with_a_turn_per_step(is_ahead: bool) -> None:
    room = Room.open_ahead() if is_ahead else Room.open()
    request = chat("what is in this?", max_tokens=6, ignore_eos=True)
    alone = room.answer(request)
    card = CountedCard(
        Placement(torch.device("cpu"), torch.float32, "off"), SharingPolicy("turns", 0.8, 0.03), 1
    )
    room.engine.share(card)
    assert room.answer(request) == alone
    # the prompt's pass makes the first token; ahead, the last step only reads
    assert card.count == 6
    room.engine.close()


def test_pages_are_planned_within_the_models_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (70 * GIB, 80 * GIB))
    assert free_bytes(QwenVLSettings(), CUDA, 10 * GIB) == 70 * GIB
    half = QwenVLSettings(memory_fraction=0.5)
    assert free_bytes(half, CUDA, 10 * GIB) == (40 - 10 - 1) * GIB
    assert free_bytes(QwenVLSettings(memory_fraction=1.0), CUDA, 5 * GIB) == 70 * GIB
    with pytest.raises(InvalidSetting, match=r"0\.5 of 80\.0 GiB is 40\.0 GiB.* take 41\.0 GiB"):
        free_bytes(half, CUDA, 40 * GIB)
