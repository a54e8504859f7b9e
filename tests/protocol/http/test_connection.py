"""Message boundaries on one connection, for any split of the input and for early responses."""

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
from tests.protocol.http.doubles import ConnectionUnderTest, SeenRequest, run_loop, split

HOST = b"Host: x\r\n"
SECOND = b"GET /second HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
THIRD = b"POST /third HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nend"
TRAP = b"\r\nupgrade: \r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
async def connection() -> AsyncIterator[ConnectionUnderTest]:
    made = ConnectionUnderTest()
    yield made
    made.close()


def upgrading(body: bytes, *, chunked: bool) -> bytes:
    """A POST that offers an upgrade to HTTP/2, as Java's client and `curl --http2` send it."""
    head = b"POST /first HTTP/1.1\r\n" + HOST
    head += b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    if not chunked:
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    coded = b"%x;a=b\r\n%b\r\n0\r\nupgrade: x\r\n\r\n" % (len(body), body)
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + coded


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("yields", [False, True])
async def test_upgrade_body_and_pipelined_requests_are_read_alike_in_any_two_pieces(
    chunked: bool, yields: bool
) -> None:
    body = b"a body with" + TRAP
    raw = upgrading(body, chunked=chunked) + SECOND + THIRD
    expected = [
        SeenRequest("POST", "/first", body),
        SeenRequest("GET", "/second", b""),
        SeenRequest("POST", "/third", b"end"),
    ]
    for cut in range(len(raw)):
        connection = ConnectionUnderTest()
        await connection.feed(split(raw, cut), yields=yields)
        assert connection.seen == expected, cut
        assert connection.statuses() == [200, 200, 200], cut
        connection.close()


async def test_upgrade_body_and_pipelined_requests_arrive_in_single_bytes(
    connection: ConnectionUnderTest,
) -> None:
    raw = upgrading(TRAP, chunked=True) + SECOND + THIRD
    await connection.feed(split(raw, *range(len(raw))))
    assert [message.target for message in connection.seen] == ["/first", "/second", "/third"]
    assert connection.seen[0].body == TRAP


@pytest.mark.parametrize("size", [len(TRAP), 300_000, 8_000_000])
@pytest.mark.parametrize("piece", [1_000, 65_536, 10**9])
async def test_a_body_after_an_early_response_is_never_parsed_as_a_request(
    connection: ConnectionUnderTest, size: int, piece: int
) -> None:
    body = (TRAP * (size // len(TRAP) + 1))[:size]
    raw = b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % size + body
    await connection.feed(split(raw + SECOND, *range(0, len(raw), piece)))
    targets = [message.target for message in connection.seen]
    if size <= http_connection.DISCARD_BYTES or piece > size:  # the rest was discarded
        assert targets == ["/early", "/second"]
    else:
        assert targets == ["/early"]
        assert b"connection: close\r\n" in connection.transport.written
        assert connection.transport.has_sent_eof


async def test_an_early_response_closes_the_connection_if_the_body_is_chunked(
    connection: ConnectionUnderTest,
) -> None:
    head = b"POST /early HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    await connection.feed([head, b"0\r\n\r\n" + SECOND])
    assert connection.statuses() == [415]
    assert b"connection: close\r\n" in connection.transport.written


async def test_an_early_response_closes_the_connection_if_100_continue_was_not_sent(
    connection: ConnectionUnderTest,
) -> None:
    head = b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    await connection.feed([head, SECOND])
    assert connection.statuses() == [415]
    assert b"connection: close\r\n" in connection.transport.written


async def test_a_head_may_be_cut_inside_its_last_line_end(connection: ConnectionUnderTest) -> None:
    head = b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(TRAP)
    for cut in range(1, 5):
        await connection.feed([head[:-cut], head[-cut:] + TRAP])
    assert connection.statuses() == [415] * 4
    assert {message.target for message in connection.seen} == {"/early"}


async def test_pipelined_requests_are_buffered_up_to_a_limit(
    connection: ConnectionUnderTest,
) -> None:
    first = b"POST /first HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n"
    count = 3 * http_connection.MAX_BUFFERED_BYTES // len(THIRD)
    connection.transport.feed(first + THIRD * count)
    assert connection.transport.is_paused, "reading did not stop"
    assert connection.seen == []
    await connection.wait_answered()
    assert len(connection.seen) == 1 + count
    assert connection.statuses() == [200] * (1 + count)
    assert not connection.transport.is_paused


async def test_tiny_chunks_are_decoded_in_several_loop_iterations(
    connection: ConnectionUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    iterations = []
    resume = connection.connection._resume_decoding
    monkeypatch.setattr(
        connection.connection, "_resume_decoding", lambda: (iterations.append(1), resume())
    )
    body = b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n"
    head = b"POST /first HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    await connection.feed([head + body + THIRD])
    assert [len(message.body) for message in connection.seen] == [20_000, 3]
    assert len(iterations) == 20_000 // CHUNKS_PER_CALL


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
async def test_an_invalid_head_is_refused_as_early_as_possible(raw: bytes, status: int) -> None:
    for parts in ([raw], split(raw, *range(0, len(raw), 7))):
        connection = ConnectionUnderTest()
        await connection.feed(parts, yields=False)
        assert connection.statuses() == [status]
        assert b"connection: close\r\n" in connection.transport.written
        assert b'{"error":"' in connection.transport.written
        assert b"\r\nx-request-id: " in connection.transport.written
        connection.close()


async def test_a_malformed_chunked_body_is_a_400(connection: ConnectionUnderTest) -> None:
    head = b"POST /first HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    await connection.feed([head, b"5\r\nhello\r\n", b"zz\r\n" + SECOND])
    assert connection.seen == []
    assert connection.statuses() == [400]


async def test_garbage_after_a_request_is_refused_after_its_response(
    connection: ConnectionUnderTest,
) -> None:
    begun, going = asyncio.Event(), asyncio.Event()

    async def slow(scope: object, receive: object, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        begun.set()
        await going.wait()
        await send({"type": "http.response.body", "body": b"two"})

    connection.connection._app = slow
    connection.transport.feed(b"GET /first HTTP/1.1\r\n" + HOST + b"\r\n" + b"no request\r\n\r\n")
    await begun.wait()
    assert connection.statuses() == [200]
    going.set()
    await connection.wait_answered()
    assert connection.statuses() == [200, 400]
    assert b"3\r\ntwo\r\n0\r\n\r\nHTTP/1.1 400 Bad Request\r\n" in connection.transport.written


async def test_a_failing_application_is_a_500_or_an_aborted_connection(
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
        connection = ConnectionUnderTest()
        connection.connection._app = failing  # type: ignore[assignment]
        await connection.feed([b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n"])
        assert connection.statuses() == statuses
        assert connection.transport.is_aborted == (path == b"/late")
        assert b"secret" not in connection.transport.written
        connection.close()
    assert [record.getMessage() for record in caplog.records] == ["the application failed"] * 3


@pytest.mark.parametrize("value", [b"a\r\nb: c", b"a\nb", b"a\rb"])
async def test_a_response_header_with_a_line_end_is_refused(
    connection: ConnectionUnderTest, value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def splitting(scope: object, receive: object, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", value)]})

    connection.connection._app = splitting  # type: ignore[assignment]
    await connection.feed([b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"])
    assert connection.statuses() == [500]
    assert value not in connection.transport.written


async def test_an_empty_line_before_a_request_is_accepted(connection: ConnectionUnderTest) -> None:
    await connection.feed([THIRD, b"\r", b"\n", b"\r\n" + THIRD])
    assert connection.statuses() == [200, 200]


async def test_an_http_1_0_response_is_not_chunked_and_closes_the_connection(
    connection: ConnectionUnderTest,
) -> None:
    async def streaming(scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore
        for part in (b"one ", b"two"):
            message = {"type": "http.response.body", "body": part, "more_body": True}
            await send(message)  # type: ignore[operator]
        await send({"type": "http.response.body"})  # type: ignore[operator]

    connection.connection._app = streaming  # type: ignore[assignment]
    await connection.feed([b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"])
    head, _, body = bytes(connection.transport.written).partition(b"\r\n\r\n")
    assert body == b"one two"
    assert head.endswith(b"\r\nconnection: close")
    assert b"transfer-encoding" not in head
    assert connection.transport.is_closed


async def test_a_response_to_head_has_content_length_and_no_body(
    connection: ConnectionUnderTest,
) -> None:
    await connection.feed([b"HEAD /a HTTP/1.1\r\n" + HOST + b"\r\n" + THIRD])
    assert connection.statuses() == [200, 200]
    first = bytes(connection.transport.written).split(b"HTTP/1.1 ")[1]
    assert b"\r\ncontent-length: " in first
    assert first.endswith(b"\r\n\r\n")


async def test_a_large_response_is_written_as_fast_as_the_client_reads(
    connection: ConnectionUnderTest,
) -> None:
    picture = bytes(2_000_000)

    async def drawing(scope: object, receive: object, send: object) -> None:
        headers = [(b"content-length", b"%d" % len(picture))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})  # type: ignore
        await send({"type": "http.response.body", "body": picture})  # type: ignore[operator]

    connection.connection._app = drawing  # type: ignore[assignment]
    connection.transport.reads = False
    connection.transport.feed(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    await run_loop()
    assert connection.transport.get_write_buffer_size() < 400_000, "the whole response was buffered"
    while connection.state.tasks:
        connection.transport.read_buffered(10**9)
        await run_loop()
    assert bytes(connection.transport.written).endswith(b"\r\n\r\n" + picture)


# -- comparison with h11 ------------------------------------------------------------------------
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


def parse_with_h11(raw: bytes) -> list[SeenRequest]:
    """The requests that h11 finds, until the first error. h11 does not skip empty lines.

    An /early request counts even if its body is malformed.
    """
    found: list[SeenRequest] = []
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
                found.append(SeenRequest(event.method.decode(), event.target.decode(), b""))
            return found
        found.append(SeenRequest(event.method.decode(), event.target.decode(), body))
        raw = wire.trailing_data[0]


async def parse_with_ours(parts: list[bytes], yields: bool) -> list[SeenRequest]:
    connection = ConnectionUnderTest()
    for part in parts:
        connection.transport.feed(part)
        if yields:
            await run_loop()
    for _ in range(20):
        await run_loop()
    connection.close()
    await connection.wait_answered()
    return connection.seen


def is_same(ours: SeenRequest, theirs: SeenRequest) -> bool:
    """Equal, or the application did not read the body of an early response."""
    return ours == theirs or ours == SeenRequest(theirs.method, theirs.target, b"")


@settings(max_examples=150, deadline=None)
@given(st.lists(requests(), min_size=1, max_size=4), st.lists(st.integers(0, 900)), st.booleans())
def test_valid_requests_in_any_pieces_are_parsed_as_by_h11(
    messages: list[bytes], cuts: list[int], yields: bool
) -> None:
    raw = b"".join(messages)
    parts = split(raw, *(cut for cut in cuts if cut < len(raw)))
    ours, theirs = asyncio.run(parse_with_ours(parts, yields)), parse_with_h11(raw)
    early = next(
        (i for i, m in enumerate(ours) if m.target == "/early" and m.body != theirs[i].body), None
    )
    assert len(theirs) == len(messages)
    assert all(map(is_same, ours, theirs))
    # an early response to a chunked body may be the last one
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
def test_broken_requests_that_are_accepted_are_parsed_as_by_h11(
    messages: list[bytes], edits: list[tuple[int, bytes, bool]]
) -> None:
    raw = b"".join(messages)
    for at, what, replaces in edits:
        at %= len(raw)
        raw = raw[:at] + what + raw[at + replaces :]
    ours, theirs = asyncio.run(parse_with_ours([raw], yields=True)), parse_with_h11(raw)
    assert len(ours) <= len(theirs)
    assert all(map(is_same, ours, theirs))
