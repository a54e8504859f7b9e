"""One wake-up for all who wait on a loop."""

from __future__ import annotations

import asyncio

import pytest

from predictors.serving.bell import Bell


class Sleeper:
    """Notes what it is told."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.name = name
        self.told = told

    def wake(self) -> None:
        self.told.append(f"{self.name} woke")

    def lose(self) -> None:
        self.told.append(f"{self.name} lost")


async def test_all_who_are_rung_for_are_woken_in_order_by_one_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    calls: list[object] = []
    schedule = loop.call_soon_threadsafe

    def count(*args: object) -> object:
        calls.append(args)
        return schedule(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_soon_threadsafe", count)
    told: list[str] = []
    bell = Bell.of(loop)
    for name in "abc":
        bell.ring(Sleeper(name, told))
    assert told == []
    await asyncio.sleep(0)
    assert told == ["a woke", "b woke", "c woke"]
    assert len(calls) == 1
    bell.ring(Sleeper("d", told))
    await asyncio.sleep(0)
    assert told[3:] == ["d woke"]
    assert len(calls) == 2


async def test_a_loop_has_one_bell() -> None:
    loop = asyncio.get_running_loop()
    assert Bell.of(loop) is Bell.of(loop)


def test_the_next_loop_of_a_thread_has_another_bell() -> None:
    async def bell() -> Bell:
        return Bell.of(asyncio.get_running_loop())

    first, second = asyncio.run(bell()), asyncio.run(bell())
    assert first is not second
    assert first.loop is not second.loop


def test_ringing_for_a_closed_loop_tells_everybody_who_was_lost() -> None:
    told: list[str] = []

    async def main() -> Bell:
        return Bell.of(asyncio.get_running_loop())

    bell = asyncio.run(main())
    bell.ring(Sleeper("a", told))
    bell.ring(Sleeper("b", told))
    assert told == ["a lost", "b lost"]


def test_who_was_rung_for_as_the_loop_ended_is_lost_with_the_next() -> None:
    told: list[str] = []
    loop = asyncio.new_event_loop()
    bell = Bell(loop)
    bell.ring(Sleeper("a", told))  # the loop never runs again
    loop.close()
    bell.ring(Sleeper("b", told))
    assert told == ["a lost", "b lost"]
