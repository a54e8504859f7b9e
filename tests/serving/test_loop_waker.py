"""One call wakes all readers of an event loop."""

from __future__ import annotations

import asyncio

import pytest

from predictors.serving.loop_waker import LoopWaker


class Reader:
    """Writes down how it is called."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name = name
        self.calls = calls

    def wake(self) -> None:
        self.calls.append(f"{self.name} woke")

    def on_loop_closed(self) -> None:
        self.calls.append(f"{self.name} closed")


async def test_all_notified_readers_are_woken_in_order_by_one_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    scheduled: list[object] = []
    schedule = loop.call_soon_threadsafe

    def count(*args: object) -> object:
        scheduled.append(args)
        return schedule(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_soon_threadsafe", count)
    calls: list[str] = []
    waker = LoopWaker.of(loop)
    for name in "abc":
        waker.notify(Reader(name, calls))
    assert calls == []
    await asyncio.sleep(0)
    assert calls == ["a woke", "b woke", "c woke"]
    assert len(scheduled) == 1
    waker.notify(Reader("d", calls))
    await asyncio.sleep(0)
    assert calls[3:] == ["d woke"]
    assert len(scheduled) == 2


async def test_a_loop_has_one_waker() -> None:
    loop = asyncio.get_running_loop()
    assert LoopWaker.of(loop) is LoopWaker.of(loop)


async def waker_of_this_loop() -> LoopWaker:
    return LoopWaker.of(asyncio.get_running_loop())


def test_the_next_loop_of_a_thread_has_another_waker() -> None:
    first, second = asyncio.run(waker_of_this_loop()), asyncio.run(waker_of_this_loop())
    assert first is not second
    assert first.loop is not second.loop


def test_readers_of_a_closed_loop_are_called_back_at_once() -> None:
    calls: list[str] = []
    waker = asyncio.run(waker_of_this_loop())
    waker.notify(Reader("a", calls))
    waker.notify(Reader("b", calls))
    assert calls == ["a closed", "b closed"]


def test_a_reader_notified_as_the_loop_ended_is_called_back_with_the_next() -> None:
    calls: list[str] = []
    loop = asyncio.new_event_loop()
    waker = LoopWaker(loop)
    waker.notify(Reader("a", calls))  # the loop never runs again
    loop.close()
    waker.notify(Reader("b", calls))
    assert calls == ["a closed", "b closed"]
