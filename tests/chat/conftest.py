"""Engines and transformers' reference, made once for all tests of chat models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.chat.reference import Reference
from tests.chat.room import CHECKPOINT, Room, rewrite_as_hub, rewrite_as_wild


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two cores are shared by many; small tensors gain nothing from threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def room() -> Room:
    """The embedded checkpoint, deterministic, eight slots."""
    return Room.open()


@pytest.fixture(scope="session")
def wild_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded checkpoint's sizes with large random weights."""
    return rewrite_as_wild(CHECKPOINT, tmp_path_factory.mktemp("wild"))


@pytest.fixture(scope="session")
def wild(wild_checkpoint: Path) -> Room:
    """An engine of large random weights, deterministic, eight slots."""
    return Room.open(wild_checkpoint)


@pytest.fixture(scope="session")
def reference() -> Reference:
    """transformers' model of the embedded checkpoint."""
    return Reference.load(CHECKPOINT)


@pytest.fixture(scope="session")
def hub_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded checkpoint as the hub would ship it."""
    return rewrite_as_hub(CHECKPOINT, tmp_path_factory.mktemp("hub"))
