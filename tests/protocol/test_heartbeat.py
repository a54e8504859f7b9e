"""A loop that hangs is seen from another thread; one that was never started or has ended is not."""

from __future__ import annotations

import asyncio
import threading

from predictors.protocol.heartbeat import BEAT_S, STALL_S, Heartbeat


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def seen_elsewhere(heart: Heartbeat) -> bool:
    """What a thread sees while this one, and its loop, waits."""
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(heart.is_stalled))
    thread.start()
    thread.join()
    return found[0]


async def test_a_loop_that_does_not_turn_is_stalled_and_one_that_turns_again_is_not() -> None:
    clock = Clock()
    heart = Heartbeat(clock)
    heart.start()
    clock.now += STALL_S
    assert not seen_elsewhere(heart)
    clock.now += 0.1
    assert seen_elsewhere(heart)
    beaten = asyncio.Event()
    asyncio.get_running_loop().call_later(BEAT_S * 1.2, beaten.set)
    await beaten.wait()
    assert not seen_elsewhere(heart)
    heart.stop()


async def test_a_loop_that_is_not_watched_is_not_stalled() -> None:
    clock = Clock()
    heart = Heartbeat(clock)
    assert not heart.is_stalled  # models still load
    heart.start()
    heart.stop()
    clock.now += 10 * STALL_S
    assert not heart.is_stalled
