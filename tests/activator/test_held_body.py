"""The body of a held request in memory: what it takes beside its bytes."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from predictors.activator.held_body import JOINED_BYTES, HeldBody
from predictors.activator.proxying import first_of
from predictors.activator.waking import WaitingRoom
from predictors.errors import Cancelled, Overloaded
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


async def test_a_part_that_did_not_fit_is_never_left_out_of_the_body() -> None:
    """The wait may end in the same turn of the loop, before the error of the reader is seen."""
    coming: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
    coming.put_nowait({"type": "http.request", "body": b"fits", "more_body": True})
    room = WaitingRoom("held-parts", ActivatorSettings(max_held_bytes=4), never, never)
    holds = asyncio.Event()

    async def receive() -> MutableMapping[str, Any]:
        if room.num_bytes:
            holds.set()
        return await coming.get()

    body = HeldBody(receive, room, 0.0)
    ready = asyncio.get_running_loop().create_future()
    waited = asyncio.create_task(first_of(ready, body.read_ahead()))
    await holds.wait()
    coming.put_nowait({"type": "http.request", "body": b" does not", "more_body": True})
    coming.put_nowait({"type": "http.request", "body": b" fits", "more_body": False})
    ready.set_result(None)
    assert await waited is None
    with pytest.raises(Overloaded, match="over 4 bytes"):
        b"".join([part async for part in body.stream()])
    body.drop()
    assert room.num_bytes == 0
