"""Bodies of requests: limits on bytes, pace and time, and the limit of all bodies together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import pytest

from predictors.errors import Cancelled, DeadlineExceeded, Overloaded, TooLarge
from predictors.protocol.bytes_in_flight import BytesInFlight, Charge
from predictors.protocol.http import bodies
from predictors.protocol.http.bodies import (
    INLINE_BYTES,
    SHARED_BYTES,
    fail_at,
    receive_body,
    receive_small_body,
)
from predictors.workers.messages import SharedMemory


def arriving(*messages: dict[str, Any]) -> Any:
    """An ASGI `receive` that returns these messages."""
    queue = list(messages)

    async def receive() -> dict[str, Any]:
        return queue.pop(0)

    return receive


def parts(chunks: Iterable[bytes]) -> list[dict[str, Any]]:
    found = [{"type": "http.request", "body": x, "more_body": True} for x in chunks]
    return [*found, {"type": "http.request", "body": b"", "more_body": False}]


async def test_a_body_in_pieces_is_joined() -> None:
    receive = arriving(*parts([b"ab", b"", b"c"]))
    assert await receive_body(receive, {}, 3) == b"abc"


async def test_a_body_announced_as_too_large_is_not_read() -> None:
    with pytest.raises(TooLarge, match="limit of 10 bytes"):
        await receive_body(arriving(), {"content-length": "11"}, 10)
    with pytest.raises(TooLarge):
        await receive_body(arriving(), {"content-length": "9" * 100}, 10)


async def test_reading_stops_at_the_limit() -> None:
    rest = parts([b"x" * 6] * 100)
    receive = arriving(*rest)
    with pytest.raises(TooLarge):
        await receive_body(receive, {}, 10)
    assert (await receive())["body"] == b"x" * 6  # the third of 100 pieces was not received
    whole = arriving({"type": "http.request", "body": b"x" * 11})
    with pytest.raises(TooLarge):
        await receive_body(whole, {}, 10)


async def test_a_disconnect_during_the_body_is_a_cancellation() -> None:
    for earlier in ([], parts([b"a"])[:1]):
        with pytest.raises(Cancelled):
            await receive_body(arriving(*earlier, {"type": "http.disconnect"}), {}, 10)


async def test_a_body_that_never_ends_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.01)
    first = parts([b"a"])[0]

    async def receive() -> dict[str, Any]:
        nonlocal first
        if first:
            found, first = first, {}
            return found
        return await asyncio.get_running_loop().create_future()

    with pytest.raises(DeadlineExceeded, match="the body took longer"):
        await receive_body(receive, {}, 10)


async def test_a_large_body_in_any_pieces_is_returned_in_shared_memory() -> None:
    raw = bytes(range(256)) * 5000
    assert len(raw) > SHARED_BYTES
    for size in (1000, 65_536, len(raw)):
        pieces = [raw[i : i + size] for i in range(0, len(raw), size)]
        found = await receive_body(arriving(*parts(pieces)), {}, len(raw))
        assert isinstance(found, SharedMemory)
        assert found.read() == raw
        found.close()
    whole = arriving({"type": "http.request", "body": raw, "more_body": False})
    found = await receive_body(whole, {}, len(raw))
    assert isinstance(found, SharedMemory)
    assert found.read() == raw


async def test_bodies_share_a_limit_and_small_ones_are_not_counted() -> None:
    gauge: list[int] = []
    total = BytesInFlight(3 * INLINE_BYTES, gauge.append)
    first, second, small = Charge(total), Charge(total), Charge(total)
    piece = bytes(INLINE_BYTES)
    await receive_body(arriving(*parts([piece] * 3)), {}, 2**30, make_charge=lambda: first)
    assert total.used == 2 * INLINE_BYTES
    with pytest.raises(Overloaded, match="196608 are taken from all callers together") as refused:
        await receive_body(arriving(*parts([piece] * 3)), {}, 2**30, make_charge=lambda: second)
    assert refused.value.retry_after_s > 0
    second.close()
    await receive_body(arriving(*parts([b"x" * 100])), {}, 2**30, make_charge=lambda: small)
    small.close()
    first.close()
    first.close()  # idempotent
    assert total.used == 0
    assert max(gauge) == 3 * INLINE_BYTES
    assert gauge[-1] == 0


async def test_a_body_that_stalls_near_its_end_times_out() -> None:
    asked = iter(parts([bytes(1000)] * 500)[:-1])

    async def receive() -> dict[str, Any]:
        found = next(asked, None)
        return found or await asyncio.get_running_loop().create_future()

    with pytest.raises(DeadlineExceeded, match=r"64 KiB of the body took longer than 0\.05 s"):
        await receive_body(receive, {}, 2**30, piece_timeout_s=0.05)


async def test_a_steady_body_may_take_longer_than_the_timeout_of_a_piece() -> None:
    turns = 0

    async def receive() -> dict[str, Any]:
        nonlocal turns
        turns += 1
        await asyncio.sleep(0)
        return {"type": "http.request", "body": bytes(2**16), "more_body": turns < 400}

    found = await receive_body(receive, {}, 2**30, piece_timeout_s=60.0)
    assert isinstance(found, SharedMemory)
    assert found.size == 400 * 2**16


async def test_fail_at_ends_the_block_at_the_deadline() -> None:
    with pytest.raises(DeadlineExceeded, match="too late"):
        async with fail_at(time.monotonic() - 1, "too late"):
            await asyncio.get_running_loop().create_future()
    async with fail_at(None, "never"):
        await asyncio.sleep(0)


async def test_a_body_that_never_starts_times_out() -> None:
    async def receive() -> dict[str, Any]:
        return await asyncio.get_running_loop().create_future()

    with pytest.raises(DeadlineExceeded, match="64 KiB of the body took longer"):
        await receive_small_body(receive, {"content-length": "1"}, 10, 0.01)


async def test_shared_memory_of_a_failed_body_is_freed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[SharedMemory] = []

    def empty() -> SharedMemory:
        made.append(real())
        return made[-1]

    real = SharedMemory.empty
    monkeypatch.setattr(SharedMemory, "empty", empty)
    pieces = parts([bytes(2**19)] * 5)[:-1]
    with pytest.raises(Cancelled):
        await receive_body(arriving(*pieces, {"type": "http.disconnect"}), {}, 2**30)
    assert [memory.fd for memory in made] == [-1]
