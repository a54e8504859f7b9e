"""The work that a token takes from its delta to its event and on to the connection, counted in
calls of this package's functions, so that a feature can't make it slower unseen. No clock decides.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import predictors
from predictors.chat.chunks import ChunkEncoder
from predictors.chat.detokenize import AnswerReader
from predictors.chat.request import ChatDelta, ChatRequest, Sampling
from predictors.chat.row_events import RowEvents
from predictors.protocol.call import Call
from predictors.protocol.http.cycle import WRITER, StreamBody
from predictors.protocol.openai.chat_body import ChatBody
from predictors.serving.job import Job
from predictors.serving.submission import Submission
from tests.protocol.http.doubles import ConnectionUnderTest, run_loop

PACKAGE = str(Path(predictors.__file__).parent)
MOST_CALLS = 5
"""Reader and stop finder, encoder, text and event. Before it is raised: can callers who do not use
the new feature be spared its calls?"""
MOST_CALLS_TO_THE_CONNECTION = 29
"""With those of `MOST_CALLS`, and those of the engine's `emit`."""


class Letters:
    """A vocabulary in which a token is a byte."""

    def __init__(self) -> None:
        self.bytes_of: Callable[[int], bytes] = {97: b"a"}.__getitem__


def test_a_token_of_a_plain_answer_takes_no_more_calls_than_today() -> None:
    reader = AnswerReader(Letters(), ())  # type: ignore[arg-type]
    call = Call({}, protocol="openai", request_id="abc")
    body, request = ChatBody("m", (), stream=True), ChatRequest((), Sampling(), seed=1)
    encoder = ChunkEncoder(body, call, "float32", [request])
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename.startswith(PACKAGE)

    found = []
    for made in range(1, 6):
        delta, calls = ChatDelta((97,), 7, made), 0
        sys.setprofile(count)
        try:
            events = encoder.deltas(0, reader.feed(delta), dict)
        finally:
            sys.setprofile(None)
        assert b'"content":"a"' in events
        found.append(calls)
    assert 0 < max(found[1:]) <= MOST_CALLS  # the first makes the event's frame


async def test_a_token_of_an_open_stream_resumes_no_coroutine_on_its_way_to_the_connection() -> (
    None
):
    job: Job[Any, ChatDelta] = Job("a", None)
    rows = [Submission(job, AnswerReader(Letters(), ()))]  # type: ignore[arg-type]
    call = Call({}, protocol="openai", request_id="abc")
    body, request = ChatBody("m", (), stream=True), ChatRequest((), Sampling(), seed=1)
    encoder = ChunkEncoder(body, call, "float32", [request])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        stream = StreamBody(send, scope["extensions"][WRITER])
        call.writer = stream
        events = RowEvents(rows, lambda index, deltas: encoder.deltas(index, deltas, dict), call)
        with suppress(asyncio.CancelledError):
            await stream.send_all(events.items(), 0.0)

    connection = ConnectionUnderTest(app=app)
    connection.transport.feed(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await run_loop()
    called: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            called.append(frame.f_code.co_qualname)

    for made in range(1, 4):
        called.clear()
        sys.setprofile(note)
        try:
            job.emit(ChatDelta((97,), 7, made))
            await run_loop()
        finally:
            sys.setprofile(None)
        assert connection.transport.written.count(b'"content":"a"') == made
    assert 0 < len(called) <= MOST_CALLS_TO_THE_CONNECTION, called
    assert not {"RowEvents.items", "StreamBody.send_all"} & set(called)
    for task in connection.state.tasks:
        task.cancel()
    await connection.wait_answered()
