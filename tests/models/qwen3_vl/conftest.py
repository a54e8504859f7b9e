"""Checkpoints, engines and transformers' reference, made once for the tests of Qwen3-VL."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from predictors.models.qwen3_vl.model import Qwen3VLModel
from tests.chat.reference import Reference
from tests.chat.room import Room
from tests.models.qwen3_vl.checkpoint import rewrite_as_hub, write_checkpoint


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two cores are shared by many; small tensors gain nothing from threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tied, as 2B and 4B are."""
    return write_checkpoint(tmp_path_factory.mktemp("qwen3") / "tied")


@pytest.fixture(scope="session")
def untied_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a head of its own, as 8B has."""
    return write_checkpoint(tmp_path_factory.mktemp("qwen3") / "untied", tied=False)


@pytest.fixture(scope="session")
def hub_checkpoint(untied_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untied one as the hub ships it."""
    return rewrite_as_hub(untied_checkpoint, tmp_path_factory.mktemp("qwen3") / "hub")


def open_room(checkpoint: Path, **given: object) -> Room:
    """An engine on the CPU in float32, loaded and warm."""
    return Room.open(checkpoint, make_model=Qwen3VLModel, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def room(checkpoint: Path) -> Room:
    return open_room(checkpoint)


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> Reference:
    """transformers' model of the tied checkpoint."""
    return Reference.load(checkpoint)
