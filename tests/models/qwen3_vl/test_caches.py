"""Picture and prefix caches with a model whose pictures have more than one level."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.chat.room import Room, chat, png
from tests.models.qwen3_vl.conftest import open_room

PICTURE = png(7, 160, 96)  # 5 x 3 tokens


@pytest.fixture
def fresh(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Room, list[int]]:
    """An engine with empty caches, and how many patches each encoded picture had."""
    room = open_room(checkpoint, slots=2, prefix_cache="on")
    encoder, encoded = room.pictures._encoder, []
    encode = encoder.encode

    def counted(patches: torch.Tensor, *more: object) -> torch.Tensor:
        encoded.append(len(patches))
        return encode(patches, *more)

    monkeypatch.setattr(encoder, "encode", counted)
    return room, encoded


def cached(room: Room) -> dict[str, int]:
    found = room.engine.describe()["caches"]
    assert isinstance(found, dict)
    held: dict[str, int] = found["vision_embedding"]
    return held


def test_a_repeated_picture_is_encoded_once_with_all_its_levels(
    fresh: tuple[Room, list[int]], room: Room
) -> None:
    engine, encoded = fresh
    before = cached(engine)["bytes"]
    requests = [chat(word, PICTURE, "What is it?") for word in ("one", "two")]
    assert [engine.answer(r) for r in requests] == [room.answer(r) for r in requests]
    assert encoded == [4 * 15]
    assert cached(engine)["bytes"] - before == 3 * 15 * 64 * 4  # levels, tokens, hidden, bytes


def test_a_shared_prefix_with_a_picture_is_read_once(fresh: tuple[Room, list[int]]) -> None:
    engine, encoded = fresh
    requests = [chat(PICTURE, "a" * 60, question) for question in ("What?", "Why?")]
    alone = [engine.answer(request) for request in requests]
    assert engine.engine.describe()["caches"]["prefix"]["pages"] > 0  # type: ignore[index]
    jobs = [engine.start(request) for request in requests]
    engine.finish()
    assert [[t for d in job._chunks for t in d.tokens] for job in jobs] == alone
    assert encoded == [4 * 15]
