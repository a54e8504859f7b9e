"""Compressed requests over the wire: every route and size class, tritonclient's own compression."""

from __future__ import annotations

import base64
import gzip
import io
import json
import socket
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image

from tests.http.echo import PATIENCE_S, Running, echo, infer_body, serving, small_settings
from tests.http.openai_echo import Writer, words
from tests.http.test_v2_clients import bytes_input

INFER = "/v2/models/echo/infer"
LIMIT = 4 * 2**20
PACK = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    settings = small_settings(server={"max_body_bytes": LIMIT, "max_bytes_in_flight": LIMIT * 2})
    models = [echo("echo", settings), Writer("writer", words(), settings)]
    with serving(*models, settings=settings) as found:
        yield found
        found.wait_idle()
        assert found.server.registry.bytes_in_flight.used == 0


def noise(side: int) -> bytes:
    """A PNG that does not compress further."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("coding", PACK)
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("side", [8, 150, 240])  # inflated: on the loop, in a thread
def test_tritonclient_compresses_requests_and_asks_for_compressed_responses(
    running: Running, coding: str, binary: bool, side: int
) -> None:
    picture = noise(side)
    row = picture if binary else base64.b64encode(picture)
    with triton.InferenceServerClient(f"127.0.0.1:{running.server.http_port}") as client:
        result = client.infer(
            "echo",
            [bytes_input("prompt", b"a", binary=binary), bytes_input("image", row, binary=binary)],
            outputs=[triton.InferRequestedOutput("image", binary_data=True)],
            request_compression_algorithm=coding,
            response_compression_algorithm=coding,
        )
    assert result.as_numpy("image")[0] == picture


def chat(text: str) -> bytes:
    return json.dumps({"model": "writer", "messages": [{"role": "user", "content": text}]}).encode()


@pytest.mark.parametrize("size", [1, 50_000, 500_000, 2_000_000])
@pytest.mark.parametrize("coding", PACK)
def test_a_compressed_chat_of_every_size_class_is_read(
    client: httpx.Client, coding: str, size: int
) -> None:
    raw = chat("a" * size)
    headers = {"content-encoding": coding, "content-type": "application/json"}
    content: Any = PACK[coding](raw)
    for body in (content, iter([content[:5], content[5:]])):  # with Content-Length, and chunked
        reply = client.post("/v1/chat/completions", content=body, headers=headers)
        assert reply.status_code == 200, reply.text
        said = reply.json()["choices"][0]["message"]["content"]
        assert said == "a" * size + ":1"
        assert "content-encoding" not in reply.headers


@pytest.mark.parametrize(
    ("headers", "pack"),
    [
        ([("content-encoding", "deflate, gzip")], lambda x: gzip.compress(zlib.compress(x))),
        (
            [("content-encoding", "deflate"), ("content-encoding", "gzip")],
            lambda x: gzip.compress(zlib.compress(x)),
        ),
        ([("content-encoding", "identity")], bytes),
        ([("content-encoding", "X-GZIP, identity")], gzip.compress),
    ],
)
def test_stacked_codings_are_undone_in_their_order(
    client: httpx.Client, headers: list[tuple[str, str]], pack: Any
) -> None:
    raw = pack(json.dumps(infer_body("a")).encode())
    reply = client.post(INFER, content=raw, headers=headers)
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("path", [INFER, "/v1/chat/completions", "/v2/repository/index"])
@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, br"])
def test_another_coding_is_a_415_that_names_those_offered(
    client: httpx.Client, path: str, coding: str
) -> None:
    reply = client.post(path, content=b"x", headers={"content-encoding": coding})
    assert (reply.status_code, reply.headers["accept-encoding"]) == (415, "gzip, deflate")
    assert "not accepted; use gzip, deflate" in reply.text


@pytest.mark.parametrize("size", [LIMIT + 1, 16 * LIMIT])
def test_a_bomb_is_a_413_on_every_route(client: httpx.Client, size: int) -> None:
    once = gzip.compress(bytes(size), 1)
    for raw, coding in ((once, "gzip"), (gzip.compress(once), "gzip, gzip")):
        for path in (INFER, "/v1/chat/completions", "/v2/repository/index"):
            reply = client.post(path, content=raw, headers={"content-encoding": coding})
            assert reply.status_code == 413
            assert "body is larger than the limit" in reply.text
    assert client.post(INFER, json=infer_body("a")).status_code == 200


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (gzip.compress(b"{}")[:-1], "end too early"),
        (gzip.compress(b"{}") + b"xy", "not valid gzip data"),
        (b"{}", "not valid gzip data"),
        (gzip.compress(b"{") * 5000, "more than 4096 gzip members"),
    ],
    ids=["cut short", "bytes behind the end", "not compressed", "many members"],
)
@pytest.mark.parametrize("path", [INFER, "/v1/chat/completions", "/v2/repository/index"])
def test_broken_data_are_a_400(client: httpx.Client, path: str, raw: bytes, words: str) -> None:
    reply = client.post(path, content=raw, headers={"content-encoding": "gzip"})
    expected = (413,) if path.endswith("index") and len(raw) > 4096 else (400,)
    assert reply.status_code in expected
    assert words in reply.text or reply.status_code == 413


def test_the_index_reads_a_compressed_filter(client: httpx.Client) -> None:
    raw = gzip.compress(b'{"ready": true}')
    reply = client.post("/v2/repository/index", content=raw, headers={"content-encoding": "gzip"})
    assert [entry["name"] for entry in reply.json()] == ["echo", "writer"]


def exchange(running: Running, head: str, body: bytes) -> tuple[bytes, bytes]:
    """Send a head that expects 100-continue; the first answer, and the next after the body."""
    address = ("127.0.0.1", running.server.http_port)
    with socket.create_connection(address, PATIENCE_S) as sock, sock.makefile("rb") as file:
        sock.sendall(
            f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
            f"Content-Length: {len(body)}\r\n{head}\r\n".encode()
        )
        first = file.readline()
        if not first.startswith(b"HTTP/1.1 100"):
            return first, b""
        assert file.readline() == b"\r\n"
        sock.sendall(body)
        return first, file.readline()


def test_a_compressed_body_is_asked_for_only_if_it_will_be_read(running: Running) -> None:
    body = gzip.compress(json.dumps(infer_body("a")).encode())
    first, then = exchange(running, "Content-Encoding: gzip\r\n", body)
    assert (first[9:12], then[9:12]) == (b"100", b"200")
    first, then = exchange(running, "Content-Encoding: br\r\n", body)
    assert (first[9:12], then) == (b"415", b"")


def test_a_byte_order_mark_before_json_is_skipped(client: httpx.Client) -> None:
    for raw, headers in (
        (json.dumps(infer_body("a")).encode("utf-8-sig"), {}),
        (
            gzip.compress(json.dumps(infer_body("a")).encode("utf-8-sig")),
            {"content-encoding": "gzip"},
        ),
    ):
        assert client.post(INFER, content=raw, headers=headers).status_code == 200
    long = b"\xef\xbb\xbf" + chat("a" * 100_000)
    assert client.post("/v1/chat/completions", content=long).status_code == 200
