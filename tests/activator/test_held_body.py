"""The body of a held request in memory: what it takes beside its bytes."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from predictors.activator.held_body import JOINED_BYTES, HeldBody
from predictors.activator.waking import WaitingRoom
from predictors.errors import Cancelled
from predictors.settings import ActivatorSettings


async def never() -> bool:
    raise AssertionError("nobody waits")


@pytest.mark.parametrize(("size", "count"), [(2, 1000), (JOINED_BYTES, 3)])
async def test_small_parts_are_joined_and_large_ones_are_not_copied(size: int, count: int) -> None:
    parts = [bytes([i % 256]) * size for i in range(count)]
    coming: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
    for part in parts:
        coming.put_nowait(
            {"type": "http.request", "body": part, "more_body": part is not parts[-1]}
        )
    coming.put_nowait({"type": "http.disconnect"})
    room = WaitingRoom("held-body", ActivatorSettings(), never, never)
    body = HeldBody(coming.get, room, 0.0)
    with pytest.raises(Cancelled):
        await body.read_ahead()
    assert room.num_bytes == size * count
    streamed = [part async for part in body.stream()]
    assert b"".join(streamed) == b"".join(parts)
    assert len(streamed) == (1 if size < JOINED_BYTES else count)
    assert room.num_bytes == 0
