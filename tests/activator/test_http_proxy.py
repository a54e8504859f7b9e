"""HTTP through the activator: passed on, held while no server listens, cut off where it breaks."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import httpx
import pytest

from tests.activator.scripted import (
    PATIENCE_S,
    Rig,
    Seen,
    activated,
    plain,
    sample,
)


@pytest.fixture
def rig() -> Iterator[Rig]:
    """An activator whose model starts when it is woken."""
    with activated() as rig:
        rig.scale.on_wake = rig.model.start
        yield rig


def awake(rig: Rig) -> None:
    """Start the model before anything is asked."""
    rig.scale.replicas = 1
    rig.model.start()


def test_a_request_without_a_model_is_held_wakes_it_and_is_answered(rig: Rig) -> None:
    reply = rig.post(content=b'{"inputs": []}')
    assert (reply.status_code, reply.content) == (200, b"ok")
    assert rig.scale.replicas == 1
    assert [seen.body for seen in rig.model.seen] == [b'{"inputs": []}']
    assert rig.total("proxied") == 1


def test_a_model_that_listens_is_asked_at_once_and_the_scale_api_is_not(rig: Rig) -> None:
    awake(rig)
    assert rig.post().status_code == 200
    assert rig.scale.calls == 0


def test_twenty_callers_at_once_wake_the_model_once_and_none_is_lost(rig: Rig) -> None:
    rig.scale.on_wake = lambda: None
    waiting = [rig.later(rig.post, f"/v2/models/m/{n}", str(n).encode()) for n in range(20)]
    rig.scale.wait_held(20)
    rig.model.start()
    replies = [each.result(PATIENCE_S) for each in waiting]
    assert [reply.status_code for reply in replies] == [200] * 20
    asked = {(seen.target, seen.body) for seen in rig.model.seen}
    assert asked == {(b"/v2/models/m/%d" % n, b"%d" % n) for n in range(20)}
    assert len(rig.model.seen) == 20
    assert rig.total("proxied") == 20


def test_a_model_that_listens_and_is_not_ready_yet_is_waited_for(rig: Rig) -> None:
    rig.model.is_ready = False
    rig.scale.on_wake = lambda: None
    first = rig.later(rig.post)
    rig.scale.wait_held(1)
    rig.model.start()
    calls = rig.scale.calls
    rig.scale.wait_for(lambda: rig.scale.calls > calls + 3)
    assert rig.model.seen == []
    rig.model.is_ready = True
    assert first.result(PATIENCE_S).status_code == 200


def test_target_fields_and_body_arrive_as_they_were_sent(rig: Rig) -> None:
    awake(rig)
    with rig.connect() as sock:
        sock.sendall(
            b"POST /v2/models/a%2Fb/../infer?x=%20&y HTTP/1.1\r\nHost: flux.example.com\r\n"
            b"Content-Length: 3\r\nX-Own: one\r\nx-own: two\r\nX-Request-ID: mine\r\n"
            b"X-Forwarded-For: 10.0.0.1\r\nTE: trailers\r\nKeep-Alive: 5\r\nX-Hop: gone\r\n"
            b"Connection: keep-alive, x-hop, host\r\n\r\n\x00\xffz"
        )
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")
    (seen,) = rig.model.seen
    assert (seen.method, seen.target) == (b"POST", b"/v2/models/a%2Fb/../infer?x=%20&y")
    assert seen.body == b"\x00\xffz"
    assert seen.values(b"host") == [b"flux.example.com"]
    assert seen.values(b"x-own") == [b"one", b"two"]
    assert seen.values(b"x-request-id") == [b"mine"]
    assert seen.values(b"x-forwarded-for") == [b"10.0.0.1, 127.0.0.1"]
    assert seen.values(b"connection") == [b"close"]
    for gone in (b"te", b"keep-alive", b"x-hop"):
        assert seen.values(gone) == []


def test_status_and_fields_of_the_answer_arrive_without_those_of_the_connection(rig: Rig) -> None:
    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 429 Slow\r\nRetry-After: 7\r\nX-Request-ID: theirs\r\n"
            b"Connection: x-inner\r\nX-Inner: 1\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
            b"Content-Length: 4\r\n\r\nbusy"
        )

    awake(rig)
    rig.model.answer = answer
    with rig.client() as http:
        reply = http.get("/", headers={"x-request-id": "mine"})
    assert (reply.status_code, reply.content) == (429, b"busy")
    assert reply.headers["retry-after"] == "7"
    assert reply.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert reply.headers.get_list("x-request-id") == ["mine"]
    assert len(reply.headers.get_list("date")) == 1
    assert "x-inner" not in reply.headers


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_an_answer_without_a_body_keeps_the_connection(rig: Rig, method: str) -> None:
    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        no_body = seen.method == b"HEAD"
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"
            if no_body
            else b"HTTP/1.1 204 No Content\r\n\r\n"
        )

    awake(rig)
    rig.model.answer = answer
    with rig.client() as http:
        for _ in range(2):
            reply = http.request(method, "/")
            assert reply.content == b""
    assert reply.status_code == (200 if method == "HEAD" else 204)


def test_events_arrive_one_by_one_as_the_model_sends_them(rig: Rig) -> None:
    turns: list[threading.Event] = [threading.Event() for _ in range(3)]

    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await seen.read_body()
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        await writer.drain()
        for number, turn in enumerate(turns):
            assert await asyncio.to_thread(turn.wait, PATIENCE_S)
            event = b"data: %d\n\n" % number
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    rig.model.answer = answer
    with rig.client() as http, http.stream("POST", "/v1/chat/completions", content=b"{}") as reply:
        assert reply.headers["content-type"] == "text/event-stream"  # before the first event
        events = reply.iter_raw()
        for number, turn in enumerate(turns):
            turn.set()
            assert next(events) == b"data: %d\n\n" % number
        assert list(events) == []
    assert rig.total("proxied", "openai") == 1


def test_a_body_reaches_an_awake_model_while_the_caller_still_sends(rig: Rig) -> None:
    first_part = threading.Event()

    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        size = int(await seen.reader.readline(), 16)
        seen.body = await seen.reader.readexactly(size)
        await seen.reader.readexactly(2)
        first_part.set()
        await plain(seen, writer)

    def parts() -> Iterator[bytes]:
        yield b"one"
        assert first_part.wait(PATIENCE_S)
        yield b"two"

    awake(rig)
    rig.model.answer = answer
    assert rig.post(content=parts()).status_code == 200
    assert rig.model.seen[0].body == b"onetwo"


def test_a_large_body_in_both_directions_arrives_whole(rig: Rig) -> None:
    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await seen.read_body()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(seen.body))
        writer.write(seen.body)

    content = bytes(range(256)) * 40_000
    rig.model.answer = answer
    assert rig.post(content=content).content == content  # held and woken
    assert rig.post(content=content).content == content


def test_a_caller_that_leaves_during_the_answer_ends_the_connection_to_the_model(rig: Rig) -> None:
    left = threading.Event()

    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await seen.read_body()
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
        await writer.drain()
        assert await seen.reader.read() == b""  # the end
        left.set()

    awake(rig)
    rig.model.answer = answer
    with rig.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: m\r\n\r\n")
        while b"a\r\n" not in sock.recv(4096):
            pass
    assert left.wait(PATIENCE_S)


@pytest.mark.parametrize("length", [1, 9], ids=["before the answer", "within its body"])
def test_a_caller_that_leaves_ends_the_connection_to_the_model(rig: Rig, length: int) -> None:
    asked, left = threading.Event(), threading.Event()

    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        assert await seen.reader.readexactly(1) == b"x"
        asked.set()
        assert await seen.reader.read() == b""
        left.set()

    awake(rig)
    rig.model.answer = answer
    with rig.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: m\r\nContent-Length: %d\r\n\r\nx" % length)
        assert asked.wait(PATIENCE_S)
    assert left.wait(PATIENCE_S)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",
    ],
)
def test_a_model_that_dies_within_its_answer_is_never_a_whole_answer(rig: Rig, head: bytes) -> None:
    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        await writer.drain()

    awake(rig)
    rig.model.answer = answer
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)), rig.client() as http:
        http.get("/")


@pytest.mark.parametrize("path", ["/v2/models/m/infer", "/v1/chat/completions"])
def test_a_model_that_dies_before_its_answer_is_a_502_and_is_not_asked_again(
    rig: Rig, path: str
) -> None:
    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await seen.read_body()

    awake(rig)
    rig.model.answer = answer
    reply = rig.post(path)
    error = reply.json()["error"]
    said = error["message"] if path.startswith("/v1") else error
    assert reply.status_code == 502
    assert "may have been carried out" in said
    assert reply.headers["x-should-retry"] == "false"
    assert len(rig.model.seen) == 1


def test_an_early_answer_arrives_though_the_model_reads_no_further(rig: Rig) -> None:
    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig")
        await writer.drain()
        await seen.reader.read()

    awake(rig)
    rig.model.answer = answer
    assert rig.post(content=b"x" * 200_000).status_code == 413


@pytest.mark.parametrize(
    "raw",
    [
        b"POST / HTTP/1.1\r\nHost: m\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n"
        b"\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: m\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: m\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: m\r\nX: a\nY: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: m\r\n folded\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    ],
)
def test_what_two_servers_could_read_differently_never_reaches_the_model(
    rig: Rig, raw: bytes
) -> None:
    awake(rig)
    with rig.connect() as sock:
        sock.sendall(raw)
        sock.shutdown(socket.SHUT_WR)
        assert not sock.recv(64).startswith(b"HTTP/1.1 2")
    assert rig.model.seen == []
    assert rig.post().status_code == 200


def test_a_broken_chunk_ends_the_exchange_with_the_model_and_is_no_end_of_the_body(
    rig: Rig,
) -> None:
    cut = threading.Event()

    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        rest = await seen.reader.read()
        assert not rest.endswith(b"0\r\n\r\n")
        cut.set()

    awake(rig)
    rig.model.answer = answer
    with rig.connect() as sock:
        sock.sendall(
            b"POST / HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
        )
        rig.model.wait_for(lambda: rig.model.seen)
        sock.sendall(b"zz\r\n")
        assert sock.recv(64).startswith(b"HTTP/1.1 400")
    assert cut.wait(PATIENCE_S)


def test_two_requests_on_one_connection_are_two_requests_to_the_model(rig: Rig) -> None:
    awake(rig)
    one = b"POST /a HTTP/1.1\r\nHost: m\r\nContent-Length: 2\r\n\r\nhi"
    with rig.connect() as sock:
        sock.sendall(one + one.replace(b"/a", b"/b"))
        received = b""
        while received.count(b"\r\n\r\nok") < 2:
            received += sock.recv(4096)
    assert [seen.target for seen in rig.model.seen] == [b"/a", b"/b"]


def test_a_caller_that_asks_to_continue_is_told_to_while_it_is_held(rig: Rig) -> None:
    with rig.connect() as sock:
        sock.sendall(
            b"POST / HTTP/1.1\r\nHost: m\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        assert sock.recv(64).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        sock.sendall(b"hi")
        assert b"200 OK" in sock.recv(4096)
    assert rig.model.seen[0].values(b"expect") == []


def test_a_body_that_stops_coming_is_a_504_in_the_callers_format() -> None:
    with activated(body_timeout_s=0.1) as rig:
        awake(rig)
        with rig.connect() as sock:
            sock.sendall(b"POST /v1/x HTTP/1.1\r\nHost: m\r\nContent-Length: 9\r\n\r\nx")
            received = b""
            while not received.endswith(b"}}"):
                received += sock.recv(4096)
        assert received.startswith(b"HTTP/1.1 504")
        assert json.loads(received.rpartition(b"\r\n\r\n")[2])["error"]["code"] == (
            "deadline_exceeded"
        )


def test_what_waits_and_what_is_passed_on_is_in_progress_for_the_autoscaler(rig: Rig) -> None:
    release = threading.Event()

    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await asyncio.to_thread(release.wait, PATIENCE_S)
        await plain(seen, writer)

    def in_progress() -> float:
        return sample("requests_in_progress", rig.scale.name)

    rig.scale.on_wake = lambda: None
    rig.model.answer = answer
    reply: Future[httpx.Response] = rig.later(rig.post)
    rig.scale.wait_held(1)
    assert in_progress() == 1
    rig.model.start()
    rig.model.wait_for(lambda: rig.model.seen)
    assert in_progress() == 1
    assert sample("requests_held", rig.scale.name) == 0
    release.set()
    assert reply.result(PATIENCE_S).status_code == 200
    rig.stop()
    assert in_progress() == 0
