"""Adapters of every linear of Qwen3-VL, DeepStack's mergers among them, beside rows without."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chat.adapters.conftest import TABLES, Adapted, adapted
from tests.chat.adapters.peft_files import merged, write_adapter
from tests.chat.reference import Reference
from tests.chat.room import chat, png
from tests.models.qwen3_vl.conftest import open_room

ASKED = chat(png(3, 120, 90), "describe this picture", max_tokens=10)


@pytest.fixture(scope="module")
def adapters(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    """`all` of all linears, `eyes` of the vision tower's."""
    room, target = open_room(checkpoint, **TABLES), tmp_path_factory.mktemp("adapters")
    linears = room.model.linears
    eyes = {name: shape for name, shape in linears.items() if name.startswith("visual.")}
    assert "visual.deepstack_merger_list.1.linear_fc2" in eyes
    folders = {
        "all": write_adapter(target / "all", linears, 1, rank=3, strength=0.1),
        "eyes": write_adapter(target / "eyes", eyes, 2, rank=8, strength=0.1),
    }
    return adapted(room, folders)


def test_each_row_gets_the_tokens_of_transformers_with_its_adapters_merged(
    adapters: Adapted, reference: Reference
) -> None:
    mixes: list[dict[str, float]] = [{}, {"all": 1.0}, {"eyes": 1.0}, {"all": 0.5, "eyes": -1.0}]
    expected = []
    for scales in mixes:
        with merged(reference.model, adapters.merging(**scales)):
            expected.append(reference.answer(ASKED))
    requests = [adapters.request(ASKED, **scales) for scales in mixes]
    assert adapters.room.answers(requests) == expected
    assert [adapters.room.answer(request) for request in requests] == expected
    assert len({tuple(tokens) for tokens in expected}) == len(mixes)
