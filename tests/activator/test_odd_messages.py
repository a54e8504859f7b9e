"""Requests and answers through the activator that are HTTP in form and mean nothing good."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress

import pytest

from predictors.activator.http_proxy import HttpAddress, HttpUpstream
from tests.activator.scripted import Rig, Seen, activated


@pytest.fixture
def rig() -> Iterator[Rig]:
    """An activator whose model is awake."""
    with activated() as rig:
        rig.scale.replicas = 1
        rig.model.start()
        yield rig


def test_a_tunnel_is_not_passed_on_whatever_its_target(rig: Rig) -> None:
    with rig.connect() as sock:
        sock.sendall(b"CONNECT /a HTTP/1.1\r\nHost: m\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 501 ")
    assert rig.model.seen == []


@pytest.mark.parametrize(
    ("path", "character"),
    [
        (b"/v2/models/m%0A/infer", "%0A"), (b"/v2/models/m%0d%0aX-Y:%20z/infer", "%0D"),
        (b"/v2/models/m/infer%00", "%00"), (b"/%09", "%09"), (b"/v1/chat/completions%1f", "%1F"),
        (b"/v2/health/ready%7f", "%7F"),
    ],
)  # fmt: skip
def test_a_path_with_a_control_character_is_refused_and_not_passed_on(
    rig: Rig, path: bytes, character: str
) -> None:
    with rig.connect() as sock:
        sock.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: m\r\nContent-Length: 0\r\n\r\n")
        answer = sock.recv(4096)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert f"the path has the control character {character} in it".encode() in answer
    assert rig.model.seen == []


@pytest.mark.parametrize(
    "path", [b"/v2/models/a%2Fb/infer", b"/a%250Ab", b"/%C2%85", b"/%ff", b"/a%20b?q=%0A"]
)
def test_any_other_path_is_passed_on_as_it_came(rig: Rig, path: bytes) -> None:
    with rig.connect() as sock:
        sock.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: m\r\nContent-Length: 0\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert [seen.target for seen in rig.model.seen] == [path]


def test_a_status_that_http_does_not_have_is_a_502(rig: Rig) -> None:
    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 799 Odd\r\ncontent-length: 2\r\n\r\nok")

    rig.model.answer = answer
    reply = rig.post()
    assert reply.status_code == 502
    assert "status 799" in reply.json()["error"]
    assert rig.total("failed") == 1


def test_an_answer_without_content_has_no_length_whatever_the_model_says(rig: Rig) -> None:
    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\nok")

    rig.model.answer = answer
    reply = rig.post()
    assert (reply.status_code, reply.content) == (204, b"")
    assert "content-length" not in reply.headers


async def test_a_model_whose_readiness_never_ends_is_not_ready() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while True:
                writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
                await writer.drain()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        upstream = HttpUpstream(HttpAddress("127.0.0.1", port), connect_timeout_s=0.2)
        assert not await upstream.is_ready()
        await upstream.close()
