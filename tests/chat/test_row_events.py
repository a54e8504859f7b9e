"""Events of rows come in order: by the writer while it is open, and else as items."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.chat.request import ChatDelta
from predictors.chat.row_events import RowEvents
from predictors.errors import StepFailed
from predictors.protocol.call import Call
from predictors.serving.job import Job
from predictors.serving.submission import Submission


class Writer:
    """Keeps what is written to it; open as the test says, or for so many more events."""

    def __init__(self, left: float = 0) -> None:
        self.left = left
        self.wrote: list[bytes] = []

    @property
    def is_open(self) -> bool:
        return self.left > 0

    def write(self, event: bytes) -> None:
        assert self.is_open
        self.left -= 1
        self.wrote.append(event)


class UntilStop:
    """A reader that ends the row behind the text "stop"."""

    done = False

    def feed(self, chunk: ChatDelta) -> list[ChatDelta]:
        self.done = chunk.text == "stop"
        return [chunk]


class Rows:
    """Rows of a request whose events are read by a task; `came` has all events in their order,
    `given` those that came as items."""

    def __init__(self, count: int = 1, left: float = 0, reader: Any = None) -> None:
        self.jobs: list[Job[Any, ChatDelta]] = [Job(str(i), None) for i in range(count)]
        rows = [Submission(job, reader) for job in self.jobs]
        self.writer, call = Writer(left), Call({}, protocol="openai")
        call.writer = self.writer
        self.came = self.writer.wrote
        self.given: list[bytes] = []
        self._events = RowEvents(rows, self.encode, call)
        self.reading = asyncio.create_task(self._read())

    @staticmethod
    def encode(index: int, deltas: Sequence[ChatDelta]) -> bytes:
        text = "".join(delta.text for delta in deltas)
        if text == "broken":
            raise ZeroDivisionError
        return f"{index}:{text};".encode() if text else b""

    async def _read(self) -> None:
        async for events in self._events.items():
            self.given.append(events)
            self.came.append(events)

    async def emit(self, text: str, row: int = 0) -> None:
        self.jobs[row].emit(ChatDelta((1,), 1, 1, text))
        await turns()


async def turns() -> None:
    """Let the waker, the reader's callback and the reader run."""
    for _ in range(4):
        await asyncio.sleep(0)


async def started(count: int = 1, left: float = 0, reader: Any = None) -> Rows:
    rows = Rows(count, left, reader)
    await turns()
    return rows


async def test_while_the_writer_is_open_events_are_written_and_the_reader_is_not_resumed() -> None:
    rows = await started(left=9)
    for text in "abc":
        await rows.emit(text)
    assert rows.writer.wrote == [b"0:a;", b"0:b;", b"0:c;"]
    assert rows.given == []
    rows.jobs[0].finish()
    await rows.reading


async def test_while_the_writer_is_closed_events_are_items_and_later_ones_are_written() -> None:
    rows = await started()
    await rows.emit("a")
    rows.writer.left = 1
    await rows.emit("b")
    await rows.emit("c")
    assert rows.given == [b"0:a;", b"0:c;"]
    assert rows.came == [b"0:a;", b"0:b;", b"0:c;"]
    rows.jobs[0].finish()
    await rows.reading


async def test_a_delta_without_events_does_not_end_the_news() -> None:
    rows = await started(left=9)
    await rows.emit("")
    await rows.emit("a")
    rows.writer.left = 0
    await rows.emit("")
    await rows.emit("b")
    assert rows.came == [b"0:a;", b"0:b;"]
    rows.jobs[0].finish()
    await rows.reading


@pytest.mark.parametrize("left", [0, 9])
async def test_a_failure_is_raised_behind_the_events_before_it(left: int) -> None:
    rows = await started(2, left)
    rows.jobs[0].emit(ChatDelta((1,), 1, 1, "a"))
    rows.jobs[1].emit(ChatDelta((1,), 1, 1, "b"))
    rows.jobs[1].fail(StepFailed("the engine raised"))
    with pytest.raises(StepFailed):
        await rows.reading
    assert rows.came == [b"0:a;", b"1:b;"]
    assert rows.jobs[0].cancelled


@pytest.mark.parametrize("left", [0, 9])
async def test_an_encoder_that_raises_ends_its_request_and_no_other(left: int) -> None:
    broken, other = await started(left=left), await started(left=left)
    broken.jobs[0].emit(ChatDelta((1,), 1, 1, "broken"))
    await other.emit("a")
    with pytest.raises(ZeroDivisionError):
        await broken.reading
    assert broken.jobs[0].cancelled
    assert other.came == [b"0:a;"]
    other.jobs[0].finish()
    await other.reading


@pytest.mark.parametrize("left", [0, 9])
async def test_a_row_whose_reader_has_all_is_cancelled_and_ends_the_events(left: int) -> None:
    rows = await started(left=left, reader=UntilStop())
    for text in ("a", "stop"):
        await rows.emit(text)
    await rows.reading
    assert rows.came == [b"0:a;", b"0:stop;"]
    assert rows.jobs[0].cancelled


async def test_a_caller_that_leaves_cancels_all_rows() -> None:
    rows = await started(3, left=9)
    await rows.emit("a", row=1)
    rows.reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await rows.reading
    assert all(job.cancelled for job in rows.jobs)
    rows.jobs[1].emit(ChatDelta((1,), 1, 1, "b"))
    await turns()
    assert rows.came == [b"1:a;"]


async def test_a_job_is_freed_with_its_answer_without_a_garbage_collection() -> None:
    rows = await started(left=9)
    await rows.emit("a")
    rows.jobs[0].finish()
    await rows.reading
    job = weakref.ref(rows.jobs[0])
    gc.disable()
    try:
        del rows
        await turns()
        assert job() is None
    finally:
        gc.enable()


BURST = st.tuples(st.integers(0, 3), st.lists(st.integers(0, 2), max_size=5), st.booleans())
"""How many events the writer takes, the rows that have a token each, and a turn of the loop after
them."""


@given(st.lists(BURST, max_size=12))
def test_any_openings_of_the_writer_give_the_same_texts_of_each_row(
    bursts: list[tuple[int, list[int], bool]],
) -> None:
    async def run() -> tuple[list[str], bytes]:
        rows, said = await started(3), ["", "", ""]
        for left, tokens, has_turn in bursts:
            rows.writer.left = left
            for row in tokens:
                letter = chr(ord("a") + len(said[row]) % 26)
                said[row] += letter
                rows.jobs[row].emit(ChatDelta((1,), 1, 1, letter))
            if has_turn:
                await turns()
        for job in rows.jobs:
            job.finish()
        await rows.reading
        return said, b"".join(rows.came)

    said, came = asyncio.run(run())
    events = [event.split(":") for event in came.decode().split(";")[:-1]]
    assert said == ["".join(text for row, text in events if row == str(i)) for i in range(3)]
