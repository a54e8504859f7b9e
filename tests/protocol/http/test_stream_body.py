"""The sender of a stream's events: comments by a scripted clock, no timer per event, no mixing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, MutableMapping
from typing import Any

import pytest

from predictors.errors import StepFailed
from predictors.protocol.http.cycle import COMMENT, StreamBody


class Clock:
    """A loop's clock and timers, moved by the test; tasks run on the real loop."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.armed = 0
        self._timers: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = []

    def time(self) -> float:
        return self.now

    def create_task(self, work: Any) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(work)

    def call_later(self, seconds: float, call: Callable[..., None], *arguments: Any) -> Any:
        self.armed += 1
        entry = (self.now + seconds, call, arguments)
        self._timers.append(entry)
        clock = self

        class Handle:
            def cancel(self) -> None:
                if entry in clock._timers:
                    clock._timers.remove(entry)

        return Handle()

    async def advance(self, seconds: float) -> None:
        """Let the time pass, and what is due then run to its end."""
        end = self.now + seconds
        while due := [entry for entry in self._timers if entry[0] <= end]:
            entry = min(due, key=lambda timer: timer[0])
            self._timers.remove(entry)
            self.now = entry[0]
            entry[1](*entry[2])
            for _ in range(5):
                await asyncio.sleep(0)
        self.now = end

    @property
    def waiting(self) -> int:
        return len(self._timers)


class Sent:
    """Keeps what was sent; `gate` holds the sender back, as a client that does not read."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.inside = 0

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        assert message["more_body"] is True
        self.inside += 1
        assert self.inside == 1, "two senders at once"
        await self.gate.wait()
        self.parts.append(message["body"])
        self.inside -= 1


class Source:
    """Events that the test puts in; None ends them, an exception is raised."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    async def put(self, event: Any) -> None:
        self._queue.put_nowait(event)
        for _ in range(5):
            await asyncio.sleep(0)

    async def events(self) -> AsyncIterator[bytes]:
        while (event := await self._queue.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event


class Writer:
    """Writes to the same connection as `Sent`."""

    def __init__(self, sent: Sent) -> None:
        self._sent = sent

    @property
    def is_open(self) -> bool:
        return self._sent.gate.is_set()

    def write(self, event: bytes) -> None:
        assert self._sent.inside == 0, "two senders at once"
        self._sent.parts.append(event)


class Stream:
    def __init__(self, interval_s: float = 15.0) -> None:
        self.clock, self.sent, self.source = Clock(), Sent(), Source()
        self.body = StreamBody(self.sent, Writer(self.sent))
        self.body._loop = self.clock  # type: ignore[assignment]
        self.task = asyncio.ensure_future(self.body.send_all(self.source.events(), interval_s))


async def started(interval_s: float = 15.0) -> Stream:
    stream = Stream(interval_s)
    await asyncio.sleep(0)
    return stream


async def test_a_comment_comes_every_interval_while_nothing_is_sent() -> None:
    stream = await started()
    await stream.clock.advance(14.9)
    assert stream.sent.parts == []
    await stream.clock.advance(0.1)
    assert stream.sent.parts == [COMMENT]
    await stream.clock.advance(45.0)
    assert stream.sent.parts == [COMMENT] * 4
    await stream.source.put(None)
    await stream.task
    assert stream.clock.waiting == 0


async def test_an_event_delays_the_next_comment_without_a_timer_of_its_own() -> None:
    stream = await started()
    for i in range(100):
        await stream.source.put(b"%d" % i)
        await stream.clock.advance(0.1)
    assert stream.clock.armed == 1
    await stream.clock.advance(14.8)
    assert COMMENT not in stream.sent.parts
    await stream.clock.advance(0.2)
    assert stream.sent.parts[-1] == COMMENT
    assert stream.clock.armed <= 3
    await stream.source.put(None)
    await stream.task


async def test_nothing_is_added_while_an_event_is_on_its_way_to_a_slow_reader() -> None:
    stream = await started()
    stream.sent.gate.clear()
    await stream.source.put(b"event")
    await stream.clock.advance(100.0)
    stream.sent.gate.set()
    await stream.source.put(None)
    await stream.task
    assert stream.sent.parts == [b"event"]


async def test_an_event_waits_for_the_comment_that_is_on_its_way() -> None:
    stream = await started()
    stream.sent.gate.clear()
    await stream.clock.advance(40.0)  # two are due; one is on its way
    await stream.source.put(b"event")
    assert stream.sent.inside == 1
    stream.sent.gate.set()
    await stream.source.put(None)
    await stream.task
    assert stream.sent.parts == [COMMENT, b"event"]


@pytest.mark.parametrize("interval_s", [15.0, 0.0])
async def test_a_failure_ends_the_timer_and_is_raised(interval_s: float) -> None:
    stream = await started(interval_s)
    assert stream.clock.armed == (1 if interval_s else 0)
    await stream.source.put(StepFailed("x"))
    with pytest.raises(StepFailed):
        await stream.task
    assert stream.clock.waiting == 0


async def test_a_caller_who_leaves_during_a_comment_ends_everything() -> None:
    stream = await started()
    stream.sent.gate.clear()
    await stream.clock.advance(15.0)
    await stream.source.put(b"event")
    stream.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stream.task
    assert stream.clock.waiting == 0
    assert stream.sent.parts == []


async def test_events_are_written_at_once_only_while_the_next_one_is_awaited() -> None:
    stream = Stream()
    assert not stream.body.is_open  # the head and the first event are on their way
    await stream.source.put(b"a")
    assert stream.body.is_open
    stream.body.write(b"b")
    stream.sent.gate.clear()
    await stream.source.put(b"c")
    assert not stream.body.is_open  # the client does not read
    stream.sent.gate.set()
    await stream.source.put(None)
    await stream.task
    assert not stream.body.is_open
    assert stream.sent.parts == [b"a", b"b", b"c"]


async def test_an_event_that_was_written_delays_the_next_comment() -> None:
    stream = await started()
    await stream.source.put(b"a")
    await stream.clock.advance(14.0)
    stream.body.write(b"b")
    await stream.clock.advance(14.0)
    assert stream.sent.parts == [b"a", b"b"]
    await stream.clock.advance(1.0)
    assert stream.sent.parts == [b"a", b"b", COMMENT]
    await stream.source.put(None)
    await stream.task


async def test_nothing_is_written_past_a_comment_that_is_on_its_way() -> None:
    stream = await started()
    stream.sent.gate.clear()
    await stream.clock.advance(15.0)
    stream.sent.gate.set()
    assert not stream.body.is_open
    await stream.source.put(b"a")
    assert stream.sent.parts == [COMMENT, b"a"]
    assert stream.body.is_open
    await stream.source.put(None)
    await stream.task


async def test_without_a_writer_nothing_is_written_at_once() -> None:
    sent, source = Sent(), Source()
    body = StreamBody(sent)
    task = asyncio.ensure_future(body.send_all(source.events(), 0.0))
    await source.put(b"a")
    assert not body.is_open
    await source.put(None)
    await task
