"""Callers who send a request and do not read the answer: their place is free after a while, and so
is the server's end."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from predictors.base import Answer
from predictors.protocol.v2.values import Tensor, V2Request, V2Response
from tests.fakes import EchoEngine, ScriptedEngine
from tests.http.echo import (
    PATIENCE_S,
    EchoPredictor,
    Row,
    Running,
    infer_body,
    serving,
    small_settings,
)
from tests.http.openai_echo import Writer

PICTURE = bytes(20_000_000)
WORD = "x" * 200_000
SOON_S = 0.4


class Painter(EchoPredictor):
    """Answers every prompt with a file that no socket's buffers hold."""

    def encode_v2(self, request: V2Request, answers: list[Answer[Row, Any]]) -> V2Response:
        output = Tensor("image", "BYTES", (1,), [PICTURE])
        return V2Response(self.name, "", (output,))


PAINT = infer_body("x", parameters={"binary_data_output": True})
CHAT = {
    "model": "chat",
    "messages": [{"role": "user", "content": "w"}],
    "max_tokens": 500,
    "stream": True,
}
ASKED = [("/v2/models/paint/infer", PAINT), ("/v1/chat/completions", CHAT)]


@contextmanager
def talkative(**server: Any) -> Iterator[Running]:
    """A server whose answers are large: a picture, and a stream."""
    settings = small_settings(server=server)
    words = EchoEngine(steps=lambda task: task.steps, chunk=lambda task, i: WORD)
    models = [Painter("paint", EchoEngine(), settings), Writer("chat", words, settings)]
    with serving(*models, settings=settings) as running:
        yield running


def ask_only(running: Running, path: str, body: dict[str, Any]) -> socket.socket:
    """A request on a socket with a small buffer; the first byte of the answer has come."""
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(raw)}\r\n"
    sock = socket.socket()
    sock.settimeout(PATIENCE_S)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    sock.connect(("127.0.0.1", running.server.http_port))
    sock.sendall(head.encode() + b"connection: close\r\n\r\n" + raw)
    assert sock.recv(1) == b"H"
    return sock


def rest(sock: socket.socket) -> int:
    """How much still comes until the server ends the connection."""
    count = 0
    try:
        while part := sock.recv(2**20):
            count += len(part)
    except ConnectionResetError:
        pass
    return count


@pytest.mark.parametrize(("path", "body"), ASKED, ids=["picture", "stream"])
def test_who_never_reads_gives_its_place_back(path: str, body: dict[str, Any]) -> None:
    with talkative(write_timeout_s=SOON_S) as running, ask_only(running, path, body) as sock:
        running.wait_idle()
        assert rest(sock) < len(PICTURE), "the answer was not cut off"


@pytest.mark.parametrize(("path", "body"), ASKED, ids=["picture", "stream"])
def test_who_never_reads_does_not_hold_a_drain(path: str, body: dict[str, Any]) -> None:
    with talkative(write_timeout_s=SOON_S) as running, ask_only(running, path, body):
        assert running.stop() == 0


@pytest.mark.parametrize(("path", "body"), ASKED, ids=["picture", "stream"])
def test_a_drain_ends_in_its_own_time_whoever_reads(path: str, body: dict[str, Any]) -> None:
    with (
        talkative(write_timeout_s=3600.0, drain_timeout_s=0.1) as running,
        ask_only(running, path, body),
    ):
        assert running.stop() == 0


def test_who_reads_slowly_but_on_gets_all_of_it() -> None:
    with talkative(write_timeout_s=SOON_S) as running, ask_only(running, *ASKED[0]) as sock:
        assert rest(sock) > len(PICTURE)
        assert running.server.registry.in_flight == 0


def test_a_stream_that_has_nothing_to_say_is_not_cut_off() -> None:
    engine = ScriptedEngine(slots=1)
    settings = small_settings(server={"write_timeout_s": 0.02})
    writer = Writer("chat", engine, settings)
    body = CHAT | {"max_tokens": 2}
    with serving(writer, settings=settings) as running, running.client() as http:
        engine.allow(1)
        with http.stream("POST", "/v1/chat/completions", json=body) as reply:
            lines = reply.iter_lines()
            assert "w:1" in next(lines)
            for _ in range(100):  # far longer than the timeout
                httpx.get(f"{running.url}/v2/health/live")
            engine.open()
            assert "data: [DONE]" in list(lines)
