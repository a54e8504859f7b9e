"""Engines with adapters, made once for all tests of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from predictors.chat.adapters.named import NamedAdapters
from predictors.chat.request import ChatRequest
from predictors.compute.device.placement import place
from predictors.settings import ComputeSettings, QwenVLSettings
from tests.chat.adapters.peft_files import write_adapter
from tests.chat.room import CHECKPOINT, Room

TABLES = {"lora_max_active": 3, "lora_max_rank": 8}
CPU = place(ComputeSettings(device="cpu"))


@dataclass
class Adapted:
    """An engine, the adapters that its requests may name, and their folders."""

    room: Room
    named: NamedAdapters
    folders: dict[str, Path]

    def request(self, request: ChatRequest, *names: str, **scales: float) -> ChatRequest:
        """`request` with these adapters, those of `names` with scale 1."""
        pairs = [(name, 1.0) for name in names] + list(scales.items())
        return replace(request, adapters=self.named.mix(pairs))

    def merging(self, *names: str, **scales: float) -> list[tuple[Path, float]]:
        """The same for `merged`."""
        pairs = [(name, 1.0) for name in names] + list(scales.items())
        return [(self.folders[name], scale) for name, scale in pairs]


def adapted(room: Room, folders: dict[str, Path], **settings: int) -> Adapted:
    own = QwenVLSettings(**{**TABLES, **settings})
    named = NamedAdapters("test", room.model.linears, own, CPU)
    for name, folder in folders.items():
        named.add(name, folder)
    return Adapted(room, named, folders)


def write_three(room: Room, target: Path) -> dict[str, Path]:
    """`words` of the language model, `eyes` of the vision tower, `both`."""
    linears = room.model.linears
    eyes = {name: shape for name, shape in linears.items() if name.startswith("visual.")}
    words = {name: shape for name, shape in linears.items() if name not in eyes}
    some = {name: shape for i, (name, shape) in enumerate(linears.items()) if i % 3}
    return {
        "words": write_adapter(target / "words", words, 1, rank=4, strength=0.4),
        "eyes": write_adapter(target / "eyes", eyes, 2, rank=8, strength=0.2, use_rslora=True),
        "both": write_adapter(target / "both", some, 3, rank=2, strength=0.4, lora_alpha=3),
    }


@pytest.fixture(scope="session")
def wild_adapters(adapters: Adapted, wild_checkpoint: Path) -> Adapted:
    """The same over large random weights: answers depend on every pixel and position."""
    return adapted(Room.open(wild_checkpoint, **TABLES), adapters.folders)


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    """Over the embedded checkpoint, deterministic, eight slots."""
    room = Room.open(CHECKPOINT, **TABLES)
    return adapted(room, write_three(room, tmp_path_factory.mktemp("adapters")))
