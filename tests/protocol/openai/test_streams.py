"""Events, event streams and disconnects on the OpenAI routes, over ASGI."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.errors import StepFailed
from predictors.protocol.openai.events import DONE, TextEvents, event
from predictors.protocol.registry import Registry
from predictors.settings import Settings
from tests.protocol.http.doubles import ConnectionUnderTest
from tests.protocol.openai.doubles import (
    CHAT,
    CIRCLE,
    HELLO,
    IMAGES,
    Chatter,
    Painter,
    application,
    counted,
    mounted,
    post,
    same_as_golden,
)


async def test_a_stream_matches_the_golden_file() -> None:
    app = application(Chatter())
    body = HELLO | {"stream": True, "stream_options": {"include_usage": True}}
    same_as_golden("chat_stream.http", await post(CHAT, body, x_request_id="r1").run(app))


@pytest.mark.parametrize("fail_at", [-1, 2])
async def test_events_of_the_writer_and_of_the_iterator_make_one_stream(fail_at: int) -> None:
    body = orjson.dumps(HELLO | {"stream": True, "stream_options": {"include_usage": True}})
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: r1\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    streams: list[bytes] = []
    for version in (b"1.0", b"1.1"):  # without chunks, and so without the writer, and with it
        chatter = Chatter()
        chatter.fail_at, chatter.late_error = fail_at, StepFailed("the engine raised")
        connection = ConnectionUnderTest(app=application(chatter))
        await connection.feed([head.encode().replace(b"1.1", version) + body])
        sent = len(chatter.words) if fail_at < 0 else fail_at
        assert chatter.num_written == (0 if version == b"1.0" else sent)
        connection.close()
        raw = bytes(connection.transport.written).partition(b"\r\n\r\n")[2]
        streams.append(raw if version == b"1.0" else joined_chunks(raw))
    assert streams[0] == streams[1]
    assert streams[1].count(b"data: ") == (6 if fail_at < 0 else 3)


def joined_chunks(raw: bytes) -> bytes:
    """The content of a body in chunks."""
    content = b""
    while True:
        size, _, rest = raw.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            return content
        content, raw = content + rest[:length], rest[length + 2 :]


async def test_a_stream_that_fails_ends_with_the_error_and_without_done() -> None:
    chatter = Chatter()
    chatter.fail_at, chatter.late_error = 2, StepFailed("the engine raised on this job alone")
    body = HELLO | {"stream": True}
    wire = await post(CHAT, body, x_request_id="r1").run(application(chatter))
    assert wire.is_complete
    assert b"[DONE]" not in wire.body
    assert chatter.closed.is_set()
    same_as_golden("chat_stream_failed.http", wire)


async def test_an_internal_error_in_a_stream_shows_no_detail(caplog: Any) -> None:
    chatter = Chatter()
    chatter.fail_at = 1
    wire = await post(CHAT, HELLO | {"stream": True}).run(application(chatter))
    assert wire.status == 200
    last = orjson.loads(wire.body.rstrip().rsplit(b"data: ", 1)[1])
    assert last["error"]["code"] == "internal_error"
    assert b"secret" not in wire.body
    assert "secret" in caplog.text


async def test_a_disconnect_closes_the_models_generator() -> None:
    chatter = Chatter("leaving")
    chatter.hold_at = 2
    wire = post(CHAT, HELLO | {"model": "leaving", "stream": True})
    running = asyncio.create_task(wire.run(application(chatter)))
    assert b"red" in await wire.part(1)
    await chatter.holding.wait()
    assert not chatter.closed.is_set()
    wire.leave()
    await running
    assert chatter.closed.is_set()
    assert counted("leaving", "chat", "cancelled") == 1


async def test_the_head_is_sent_before_the_first_chunk_and_a_disconnect_closes_the_generator() -> (
    None
):
    chatter = Chatter()
    chatter.hold_at = 0
    wire = post(CHAT, HELLO | {"stream": True})
    running = asyncio.create_task(wire.run(application(chatter)))
    await chatter.holding.wait()
    assert (wire.status, wire.parts) == (200, [])
    wire.leave()
    await running
    assert chatter.closed.is_set()


async def test_a_disconnect_cancels_the_picture() -> None:
    painter = Painter("leaving-too")
    painter.hold = True
    wire = post(IMAGES, CIRCLE | {"model": "leaving-too"})
    running = asyncio.create_task(wire.run(application(painter)))
    await painter.entered.wait()
    wire.leave()
    await running
    assert painter.cancelled.is_set()
    assert counted("leaving-too", "images", "cancelled") == 1


async def test_a_slow_reader_pauses_the_generator() -> None:
    chatter = Chatter(words=("x",) * 10)
    wire = post(CHAT, HELLO | {"stream": True})
    reading = asyncio.Semaphore(0)
    sent = wire._send

    async def slow(message: Any) -> None:
        await sent(message)
        await reading.acquire()

    wire._send = slow  # type: ignore[method-assign]
    running = asyncio.create_task(wire.run(application(chatter)))
    for _ in range(4):  # the head, an empty part and two events
        reading.release()
    await wire.part(2)
    await asyncio.sleep(0)
    assert len(wire.parts) == 3
    assert not chatter.closed.is_set()
    for _ in range(20):
        reading.release()
    await running
    assert wire.is_complete


async def test_a_disconnect_in_the_middle_of_an_event_closes_the_models_generator() -> None:
    chatter = Chatter(words=("x",) * 10)
    wire = post(CHAT, HELLO | {"stream": True})
    sent = wire._send

    async def stuck(message: Any) -> None:
        await sent(message)
        if len(wire.parts) == 2:  # the socket's buffer is full, and nobody reads it any more
            wire.leave()
            await asyncio.Event().wait()

    closed: list[bool] = []
    wire._send = stuck  # type: ignore[method-assign]
    wire.on_return = lambda: closed.append(chatter.closed.is_set())
    await wire.run(application(chatter))
    assert closed == [True]  # by us, not by the garbage collector some time later
    assert len(wire.parts) == 2


async def test_a_stream_counts_as_in_flight_until_its_last_event_is_sent() -> None:
    chatter = Chatter()
    chatter.hold_at = 1
    registry = Registry([chatter], Settings())
    wire = post(CHAT, HELLO | {"stream": True})
    running = asyncio.create_task(wire.run(mounted(registry)))
    await chatter.holding.wait()
    assert registry.in_flight == 1
    wire.leave()
    await running
    assert registry.in_flight == 0


def text_chunk(text: str, name: str) -> dict[str, object]:
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    return {"id": f"chatcmpl-{name}", "model": name, "choices": [choice], "usage": None}


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(ANY_TEXT, ANY_TEXT | st.just('"content":""'))
def test_an_event_with_any_text_equals_the_event_encoded_as_a_whole(text: str, name: str) -> None:
    assert TextEvents(text_chunk("", name)).event(text) == event(text_chunk(text, name))


def test_a_line_break_in_a_text_never_ends_an_event() -> None:
    assert TextEvents(text_chunk("", "a")).event("a\n\nb\r").count(b"\n") == 2


def test_the_last_event_is_done() -> None:
    assert DONE == b"data: [DONE]\n\n"
