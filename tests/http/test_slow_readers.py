"""Clients that do not read their response: their slot is freed after a timeout, and they do not
delay shutdown.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
TIMEOUT_S = 0.4


class LargePicturePredictor(EchoPredictor):
    """Answers every prompt with a file larger than any socket buffer."""

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
def serving_large_responses(**server: Any) -> Iterator[Running]:
    """A server with large responses: a picture and a stream."""
    settings = small_settings(server=server)
    words = EchoEngine(steps=lambda task: task.steps, chunk=lambda task, i: WORD)
    models = [
        LargePicturePredictor("paint", EchoEngine(), settings),
        Writer("chat", words, settings),
    ]
    with serving(*models, settings=settings) as running:
        yield running


def send_request(running: Running, path: str, body: dict[str, Any]) -> socket.socket:
    """Send a request on a socket with a small buffer. Wait for the response's first byte."""
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(raw)}\r\n"
    sock = socket.socket()
    sock.settimeout(PATIENCE_S)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    sock.connect(("127.0.0.1", running.server.http_port))
    sock.sendall(head.encode() + b"connection: close\r\n\r\n" + raw)
    assert sock.recv(1) == b"H"
    return sock


def read_to_end(sock: socket.socket) -> int:
    """Number of bytes until the server closes the connection."""
    count = 0
    try:
        while part := sock.recv(2**20):
            count += len(part)
    except ConnectionResetError:
        pass
    return count


@pytest.mark.parametrize(("path", "body"), ASKED, ids=["picture", "stream"])
def test_a_client_that_does_not_read_is_cut_off(path: str, body: dict[str, Any]) -> None:
    with (
        serving_large_responses(write_timeout_s=TIMEOUT_S) as running,
        send_request(running, path, body) as sock,
    ):
        running.wait_idle()
        assert read_to_end(sock) < len(PICTURE), "the response was not cut off"


@pytest.mark.parametrize(("path", "body"), ASKED, ids=["picture", "stream"])
def test_a_client_that_does_not_read_does_not_delay_a_drain(
    path: str, body: dict[str, Any]
) -> None:
    with (
        serving_large_responses(write_timeout_s=TIMEOUT_S) as running,
        send_request(running, path, body),
    ):
        assert running.stop() == 0


@pytest.mark.parametrize(("path", "body"), ASKED, ids=["picture", "stream"])
def test_a_drain_ends_after_its_timeout_if_a_client_does_not_read(
    path: str, body: dict[str, Any]
) -> None:
    with (
        serving_large_responses(write_timeout_s=3600.0, drain_timeout_s=0.1) as running,
        send_request(running, path, body),
    ):
        assert running.stop() == 0


def test_a_client_that_reads_gets_the_whole_response() -> None:
    with (
        serving_large_responses(write_timeout_s=PATIENCE_S) as running,
        send_request(running, *ASKED[0]) as sock,
    ):
        assert read_to_end(sock) > len(PICTURE)
        running.wait_idle()


def test_a_stream_without_events_is_not_cut_off() -> None:
    engine = ScriptedEngine(slots=1)
    settings = small_settings(server={"write_timeout_s": 0.02})
    writer = Writer("chat", engine, settings)
    body = CHAT | {"max_tokens": 2}
    with serving(writer, settings=settings) as running, running.client() as http:
        engine.allow(1)
        with http.stream("POST", "/v1/chat/completions", json=body) as reply:
            lines = reply.iter_lines()
            assert "w:1" in next(lines)
            until = time.monotonic() + 0.2  # ten times the timeout, and the loop runs meanwhile
            with running.client() as other:
                while time.monotonic() < until:
                    assert other.get("/v2/health/live").status_code == 200
            engine.open()
            assert "data: [DONE]" in list(lines)
