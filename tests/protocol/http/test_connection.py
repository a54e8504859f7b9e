"""Where messages begin and end, whatever pieces they come in and whatever was answered early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.protocol.http import connection as http_connection
from predictors.protocol.http.parsing import CHUNKS_PER_CALL, MAX_HEAD_BYTES
from tests.protocol.http.doubles import Message, Talk, split, turns

HOST = b"Host: x\r\n"
SECOND = b"GET /second HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
THIRD = b"POST /third HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nend"
TRAP = b"\r\nupgrade: \r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
async def talk() -> AsyncIterator[Talk]:
    made = Talk()
    yield made
    made.end()


def upgrading(body: bytes, *, chunked: bool) -> bytes:
    """A POST that asks for HTTP/2 in passing, as Java's client and `curl --http2` do."""
    head = b"POST /first HTTP/1.1\r\n" + HOST
    head += b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    if not chunked:
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    coded = b"%x;a=b\r\n%b\r\n0\r\nupgrade: x\r\n\r\n" % (len(body), body)
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + coded


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("breathe", [False, True])
async def test_upgrade_body_and_pipeline_are_the_same_cut_anywhere(
    chunked: bool, breathe: bool
) -> None:
    body = b"a body with" + TRAP
    raw = upgrading(body, chunked=chunked) + SECOND + THIRD
    expected = [
        Message("POST", "/first", body),
        Message("GET", "/second", b""),
        Message("POST", "/third", b"end"),
    ]
    for cut in range(len(raw)):
        talk = Talk()
        await talk.feed(split(raw, cut), breathe=breathe)
        assert talk.seen == expected, cut
        assert talk.statuses() == [200, 200, 200], cut
        talk.end()


async def test_upgrade_body_and_pipeline_come_in_single_bytes(talk: Talk) -> None:
    raw = upgrading(TRAP, chunked=True) + SECOND + THIRD
    await talk.feed(split(raw, *range(len(raw))))
    assert [message.target for message in talk.seen] == ["/first", "/second", "/third"]
    assert talk.seen[0].body == TRAP


@pytest.mark.parametrize("size", [len(TRAP), 300_000, 8_000_000])
@pytest.mark.parametrize("piece", [1_000, 65_536, 10**9])
async def test_an_early_answer_never_makes_a_request_of_the_body(
    talk: Talk, size: int, piece: int
) -> None:
    body = (TRAP * (size // len(TRAP) + 1))[:size]
    raw = b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % size + body
    await talk.feed(split(raw + SECOND, *range(0, len(raw), piece)))
    targets = [message.target for message in talk.seen]
    if size <= http_connection.DISCARD_BYTES or piece > size:  # the rest was thrown away
        assert targets == ["/early", "/second"]
    else:
        assert targets == ["/early"]
        assert b"connection: close\r\n" in talk.line.written
        assert talk.line.has_sent_eof


async def test_an_early_answer_ends_a_connection_whose_body_has_no_known_end(talk: Talk) -> None:
    head = b"POST /early HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    await talk.feed([head, b"0\r\n\r\n" + SECOND])
    assert talk.statuses() == [415]
    assert b"connection: close\r\n" in talk.line.written


async def test_an_early_answer_ends_a_connection_that_was_not_told_to_continue(talk: Talk) -> None:
    head = b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    await talk.feed([head, SECOND])
    assert talk.statuses() == [415]
    assert b"connection: close\r\n" in talk.line.written


async def test_a_head_cut_in_its_last_line_end_is_no_different(talk: Talk) -> None:
    head = b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(TRAP)
    for cut in range(1, 5):
        await talk.feed([head[:-cut], head[-cut:] + TRAP])
    assert talk.statuses() == [415] * 4
    assert {message.target for message in talk.seen} == {"/early"}


async def test_a_pipeline_is_kept_back_and_bounded(talk: Talk) -> None:
    first = b"POST /first HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n"
    count = 3 * http_connection.MAX_BUFFERED_BYTES // len(THIRD)
    talk.line.feed(first + THIRD * count)
    assert talk.line.is_paused, "it goes on reading"
    assert talk.seen == []
    await talk.settled()
    assert len(talk.seen) == 1 + count
    assert talk.statuses() == [200] * (1 + count)
    assert not talk.line.is_paused


async def test_tiny_chunks_are_decoded_in_several_turns_of_the_loop(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns_taken = []
    resume = talk.connection._resume_decoding
    monkeypatch.setattr(
        talk.connection, "_resume_decoding", lambda: (turns_taken.append(1), resume())
    )
    body = b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n"
    head = b"POST /first HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    await talk.feed([head + body + THIRD])
    assert [len(message.body) for message in talk.seen] == [20_000, 3]
    assert len(turns_taken) == 20_000 // CHUNKS_PER_CALL


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 30_000 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 30_000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 300 + b"\r\n", 431),
        (b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n", 431),
        (b"GET /\r\n", 400),
        (b"\x16\x03\x01", 400),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400),
        (b"\n", 400),
        (b"\r\n" * 5 + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ],
)
async def test_what_can_be_no_request_is_refused_as_soon_as_that_is_known(
    raw: bytes, status: int
) -> None:
    for parts in ([raw], split(raw, *range(0, len(raw), 7))):
        talk = Talk()
        await talk.feed(parts, breathe=False)
        assert talk.statuses() == [status]
        assert b"connection: close\r\n" in talk.line.written
        assert b'{"error":"' in talk.line.written
        assert b"\r\nx-request-id: " in talk.line.written
        talk.end()


async def test_a_broken_body_is_a_400_unless_the_answer_has_begun(talk: Talk) -> None:
    head = b"POST /first HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    await talk.feed([head, b"5\r\nhello\r\n", b"zz\r\n" + SECOND])
    assert talk.seen == []
    assert talk.statuses() == [400]


async def test_garbage_behind_a_request_is_refused_once_that_is_answered(talk: Talk) -> None:
    begun, going = asyncio.Event(), asyncio.Event()

    async def slow(scope: object, receive: object, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        begun.set()
        await going.wait()
        await send({"type": "http.response.body", "body": b"two"})

    talk.connection._app = slow
    talk.line.feed(b"GET /first HTTP/1.1\r\n" + HOST + b"\r\n" + b"no request\r\n\r\n")
    await begun.wait()
    assert talk.statuses() == [200]
    going.set()
    await talk.settled()
    assert talk.statuses() == [200, 400]
    assert b"3\r\ntwo\r\n0\r\n\r\nHTTP/1.1 400 Bad Request\r\n" in talk.line.written


async def test_an_application_that_fails_is_a_500_or_an_end_that_can_be_seen(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def failing(scope: Any, receive: object, send: Any) -> None:
        if scope["path"] == "/late":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a part", "more_body": True})
        if scope["path"] == "/begun":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("a secret")

    for path, statuses in ((b"/soon", [500]), (b"/begun", [500]), (b"/late", [200])):
        talk = Talk()
        talk.connection._app = failing  # type: ignore[assignment]
        await talk.feed([b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n"])
        assert talk.statuses() == statuses
        assert talk.line.is_aborted == (path == b"/late")
        assert b"secret" not in talk.line.written
        talk.end()
    assert [record.getMessage() for record in caplog.records] == ["the application failed"] * 3


@pytest.mark.parametrize("value", [b"a\r\nb: c", b"a\nb", b"a\rb"])
async def test_no_header_of_a_response_becomes_two(
    talk: Talk, value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def splitting(scope: object, receive: object, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", value)]})

    talk.connection._app = splitting  # type: ignore[assignment]
    await talk.feed([b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"])
    assert talk.statuses() == [500]
    assert value not in talk.line.written


async def test_one_line_end_before_a_request_is_in_order(talk: Talk) -> None:
    await talk.feed([THIRD, b"\r", b"\n", b"\r\n" + THIRD])
    assert talk.statuses() == [200, 200]


async def test_no_response_of_http_1_0_is_chunked_and_each_ends_its_connection(talk: Talk) -> None:
    async def streaming(scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore
        for part in (b"one ", b"two"):
            message = {"type": "http.response.body", "body": part, "more_body": True}
            await send(message)  # type: ignore[operator]
        await send({"type": "http.response.body"})  # type: ignore[operator]

    talk.connection._app = streaming  # type: ignore[assignment]
    await talk.feed([b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"])
    head, _, body = bytes(talk.line.written).partition(b"\r\n\r\n")
    assert body == b"one two"
    assert head.endswith(b"\r\nconnection: close")
    assert b"transfer-encoding" not in head
    assert talk.line.is_closed


async def test_the_answer_to_head_has_a_length_and_no_body(talk: Talk) -> None:
    await talk.feed([b"HEAD /a HTTP/1.1\r\n" + HOST + b"\r\n" + THIRD])
    assert talk.statuses() == [200, 200]
    first = bytes(talk.line.written).split(b"HTTP/1.1 ")[1]
    assert b"\r\ncontent-length: " in first
    assert first.endswith(b"\r\n\r\n")


async def test_a_large_answer_is_handed_over_as_it_is_read(talk: Talk) -> None:
    picture = bytes(2_000_000)

    async def drawing(scope: object, receive: object, send: object) -> None:
        headers = [(b"content-length", b"%d" % len(picture))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})  # type: ignore
        await send({"type": "http.response.body", "body": picture})  # type: ignore[operator]

    talk.connection._app = drawing  # type: ignore[assignment]
    talk.line.reads = False
    talk.line.feed(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    await turns()
    assert talk.line.get_write_buffer_size() < 400_000, "all of it is kept for who does not read"
    while talk.state.tasks:
        talk.line.take(10**9)
        await turns()
    assert bytes(talk.line.written).endswith(b"\r\n\r\n" + picture)


# -- whatever is accepted, h11 sees it too ------------------------------------------------------
TOKENS = st.sampled_from(["a", "x-y", "Upgrade", "Connection", "TE", "X_Z", "Cookie"])
VALUES = st.sampled_from(["", "b", "h2c", "Upgrade", "keep-alive", "a\tb", 'q="\\""', "é"])
BODIES = st.one_of(
    st.binary(max_size=40),
    st.just(TRAP),
    st.just(b"0\r\n\r\n"),
    st.binary(max_size=9).map(TRAP.__add__),
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One valid request."""
    method = draw(st.sampled_from(["GET", "POST", "PUT", "OPTIONS"]))
    lines = [
        f"{method} /{draw(st.sampled_from(['', 'a?b=c', 'early', '%20']))} HTTP/1.1",
        "hOst: x",
    ]
    lines += [f"{draw(TOKENS)}:{draw(VALUES)}" for _ in range(draw(st.integers(0, 4)))]
    body = draw(BODIES) if method != "GET" else b""
    if not body:
        return "\r\n".join([*lines, "", ""]).encode("latin-1")
    if draw(st.booleans()):
        head = "\r\n".join([*lines, f"content-length:{len(body)}", "", ""]).encode("latin-1")
        return head + body
    head = "\r\n".join([*lines, "Transfer-Encoding: Chunked", "", ""]).encode("latin-1")
    size = draw(st.integers(1, len(body)))
    ext = draw(st.sampled_from([b"", b";a", b'; a="b;c"', b";a=b"]))
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    coded = b"".join(b"%x%b\r\n%b\r\n" % (len(part), ext, part) for part in parts)
    return head + coded + b"0\r\n" + draw(st.sampled_from([b"", b"a: b\r\n"])) + b"\r\n"


def by_h11(raw: bytes) -> list[Message]:
    """The messages that h11 finds, until it finds none or an error. It takes no empty lines.

    A head that is answered early counts as one also where its body is broken.
    """
    found: list[Message] = []
    while True:
        event = None
        for _ in range(4):
            raw = raw.removeprefix(b"\r\n")
        wire = h11.Connection(h11.SERVER)
        wire.receive_data(raw)
        try:
            event = wire.next_event()
            if not isinstance(event, h11.Request):
                return found
            body = b""
            while isinstance(part := wire.next_event(), h11.Data):
                body += bytes(part.data)
        except h11.RemoteProtocolError:
            part = None
        if not isinstance(part, h11.EndOfMessage):
            early = isinstance(event, h11.Request) and event.target.startswith(b"/early")
            if early:
                found.append(Message(event.method.decode(), event.target.decode(), b""))
            return found
        found.append(Message(event.method.decode(), event.target.decode(), body))
        raw = wire.trailing_data[0]


async def by_us(parts: list[bytes], breathe: bool) -> list[Message]:
    talk = Talk()
    for part in parts:
        talk.line.feed(part)
        if breathe:
            await turns()
    for _ in range(20):
        await turns()
    talk.end()
    await talk.settled()
    return talk.seen


def same(ours: Message, theirs: Message) -> bool:
    """The application does not read the body of what it answers early."""
    return ours == theirs or ours == Message(theirs.method, theirs.target, b"")


@settings(max_examples=150, deadline=None)
@given(st.lists(requests(), min_size=1, max_size=4), st.lists(st.integers(0, 900)), st.booleans())
def test_valid_messages_cut_anywhere_are_those_that_h11_sees(
    messages: list[bytes], cuts: list[int], breathe: bool
) -> None:
    raw = b"".join(messages)
    parts = split(raw, *(cut for cut in cuts if cut < len(raw)))
    ours, theirs = asyncio.run(by_us(parts, breathe)), by_h11(raw)
    early = next(
        (i for i, m in enumerate(ours) if m.target == "/early" and m.body != theirs[i].body), None
    )
    assert len(theirs) == len(messages)
    assert all(map(same, ours, theirs))
    # an early answer to a body without a known end may be the last one
    assert len(ours) == len(theirs) or early[-1:] == [len(ours) - 1]


EDITS = [
    b"", b"\r", b"\n", b"\r\n", b" ", b":", b"\0", b"0", b"-", b"+",
    b"content-length: 3\r\n", b"chunked",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.lists(requests(), min_size=1, max_size=3),
    st.lists(
        st.tuples(st.integers(0, 600), st.sampled_from(EDITS), st.booleans()),
        min_size=1,
        max_size=3,
    ),
)
def test_whatever_is_accepted_of_broken_messages_h11_sees_equally(
    messages: list[bytes], edits: list[tuple[int, bytes, bool]]
) -> None:
    raw = b"".join(messages)
    for at, what, replaces in edits:
        at %= len(raw)
        raw = raw[:at] + what + raw[at + replaces :]
    ours, theirs = asyncio.run(by_us([raw], breathe=True)), by_h11(raw)
    assert len(ours) <= len(theirs)
    assert all(map(same, ours, theirs))
