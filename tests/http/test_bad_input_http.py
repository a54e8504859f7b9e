"""Invalid HTTP on a raw socket, unknown routes and methods, endless input: each gets a status, and
the server keeps serving.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
from dataclasses import dataclass

import httpx
import pytest

from predictors.protocol.http import connection as http_connection
from predictors.protocol.http.parsing import MAX_HEAD_BYTES
from tests.http.echo import PATIENCE_S, Running, infer_body
from tests.http.error_checks import check_text

INFER = "/v2/models/echo/infer"
BODY = json.dumps(infer_body()).encode()
JSON_HEAD = b"host: localhost\r\ncontent-type: application/json\r\n"
LENGTH = b"content-length: %d\r\n" % len(BODY)
POST = f"POST {INFER} HTTP/1.1\r\n".encode()
HOST = b"host: x\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"
GOOD = POST + JSON_HEAD + LENGTH + b"\r\n" + BODY
TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(190)


def chunks(raw: bytes, size: int) -> bytes:
    """Encode `raw` in chunked coding."""
    parts = [raw[i : i + size] for i in range(0, len(raw), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@dataclass(frozen=True)
class Case:
    """Bytes to send and the status that they must get."""

    name: str
    raw: bytes
    status: int
    words: str = ""


CASES = [
    Case("no HTTP", b"draw me a sheep\r\n\r\n", 400, "not an HTTP/1.1 request"),
    Case("a TLS greeting", TLS_HELLO, 400, "not an HTTP/1.1 request"),
    Case("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "not an HTTP/1.1 request"),
    Case("a header without colon", b"GET /v2 HTTP/1.1\r\nnonsense\r\n\r\n", 400, "not an HTTP"),
    Case("a space before the colon", b"GET /v2 HTTP/1.1\r\nhost : x\r\n\r\n", 400, "not an HTTP"),
    Case("length -1", POST + HOST + b"content-length: -1\r\n\r\n", 400, "Content-Length must"),
    Case("length a word", POST + HOST + b"content-length: many\r\n\r\n", 400, "a number"),
    Case(
        "two lengths",
        POST + HOST + LENGTH + b"content-length: 1\r\n\r\n" + BODY,
        400,
        "more than one",
    ),
    Case(
        "length and chunks", POST + HOST + LENGTH + CHUNKED + b"\r\n" + BODY, 400, "not have both"
    ),
    Case("a path of 100 KB", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", 431, "65536"),
    Case("a header of 100 KB", b"GET /v2 HTTP/1.1\r\nx: " + b"a" * 100_000, 431, "65536"),
    Case("10,000 headers", b"GET /v2 HTTP/1.1\r\n" + b"a: bcdefg\r\n" * 10_000, 431, "65536"),
    Case("a huge length", POST + JSON_HEAD + b"content-length: 99999999999\r\n\r\n", 413, "larger"),
    Case(
        "a huge length and a polite client",
        POST + JSON_HEAD + b"expect: 100-continue\r\ncontent-length: 99999999\r\n\r\n",
        413,
        "larger than the limit of 1048576 bytes",
    ),
    Case(
        "chunks without end",
        POST + JSON_HEAD + CHUNKED + b"\r\n" + chunks(bytes(2**20 + 1), 65_536),
        413,
        "larger than the limit",
    ),
    Case(
        "100,000 tiny chunks",
        POST + JSON_HEAD + CHUNKED + b"\r\n" + chunks(BODY + b" " * 100_000, 1),
        200,
    ),
    Case("a strange host", POST + b"host: evil.example\r\n" + LENGTH + b"\r\n" + BODY, 421),
    Case(
        "120 KB of empty headers",
        b"GET /v2 HTTP/1.1\r\nhost: x\r\n" + b"a:\r\n" * 30_000,
        431,
        "65536",
    ),
    Case("300 headers", b"GET /v2 HTTP/1.1\r\nhost: x\r\n" + b"a:\r\n" * 300 + b"\r\n", 431, "256"),
    Case("HTTP/0.9", b"GET /v2/health/live\r\n", 400, "not an HTTP/1.1 request"),
    Case("HTTP/2 without its greeting", b"GET /v2 HTTP/2.0\r\nhost: x\r\n\r\n", 400, "not an HTTP"),
    Case("no host", POST + LENGTH + b"\r\n" + BODY, 400, "no Host"),
    Case("two hosts", POST + JSON_HEAD + HOST + LENGTH + b"\r\n" + BODY, 400, "more than one Host"),
    Case(
        "a host that is none", POST + b"host: a@b:c/../d\r\n" + LENGTH + b"\r\n" + BODY, 400, "Host"
    ),
    Case("a list of hosts", POST + b"host: a, b\r\n" + LENGTH + b"\r\n" + BODY, 400, "Host"),
    Case("a folded header", POST + HOST + b"a: b\r\n c: d\r\n\r\n", 400, "header line"),
    Case("line feeds alone", b"GET /v2 HTTP/1.1\nhost: x\n\n", 400, "not an HTTP"),
    Case("a tunnel", b"CONNECT x:443 HTTP/1.1\r\nhost: x:443\r\n\r\n", 501, "no proxy"),
    Case(
        "an expectation",
        POST + JSON_HEAD + b"expect: tea\r\n" + LENGTH + b"\r\n",
        417,
        "expectation",
    ),
    Case(
        "a coding that is unknown",
        POST + HOST + b"transfer-encoding: gzip, chunked\r\n\r\n",
        400,
        "chunked",
    ),
    Case("a chunk that is none", POST + JSON_HEAD + CHUNKED + b"\r\nxyz\r\n", 400, "malformed"),
    Case("HTTP/1.0", POST.replace(b"1.1", b"1.0") + JSON_HEAD + LENGTH + b"\r\n" + BODY, 200),
    Case(
        "a polite client",
        POST + JSON_HEAD + b"expect: 100-continue\r\n" + LENGTH + b"\r\n" + BODY,
        100,
    ),
    Case(
        "an upgrade to HTTP/2",
        POST + b"connection: upgrade\r\nupgrade: h2c\r\n" + JSON_HEAD + LENGTH + b"\r\n" + BODY,
        200,
    ),
]


def connected(running: Running) -> socket.socket:
    """Open a new connection."""
    return socket.create_connection(("127.0.0.1", running.server.http_port), PATIENCE_S)


def send(sock: socket.socket, raw: bytes) -> None:
    """Send what the server accepts: it may respond and close before it has read everything."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(raw)


def receive(sock: socket.socket) -> bytes:
    """Read one complete response in any number of pieces, or what there is before the end."""
    found = b""
    with contextlib.suppress(ConnectionResetError):  # the server closed before all was sent
        while not is_whole(found) and (part := sock.recv(65_536)):
            found += part
    return found


def is_whole(found: bytes) -> bool:
    """True if the response's body is complete, or it has none."""
    head, blank, body = found.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", head)
    return bool(blank) and len(body) >= (int(length[1]) if length else 0)


def request(running: Running, raw: bytes) -> tuple[int, bytes]:
    """Status and the rest of the first response to `raw`."""
    with connected(running) as sock:
        send(sock, raw)
        found = receive(sock)
    return int(found.split(b" ", 2)[1]), found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_any_bytes_on_the_socket_get_a_status(running: Running, case: Case) -> None:
    status, found = request(running, case.raw)
    assert status == case.status, found[:500]
    assert status == 100 or b"\r\nx-request-id: " in found
    if case.words:
        body = json.loads(found.partition(b"\r\n\r\n")[2])
        check_text(body["error"], case.words)
    assert request(running, GOOD)[0] == 200


def test_pipelined_requests_are_answered_in_order(running: Running) -> None:
    with connected(running) as sock:
        sock.sendall(GOOD + b"GET /v2 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        found = b""
        while part := sock.recv(65_536):
            found += part
    assert found.count(b"HTTP/1.1 200 OK") == 2
    assert found.index(b"a red circle") < found.index(b"vision-predictors")


def test_a_request_may_arrive_in_single_bytes(running: Running) -> None:
    with connected(running) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(len(GOOD)):
            sock.sendall(GOOD[i : i + 1])
        assert sock.recv(65_536).startswith(b"HTTP/1.1 200 OK")


def test_a_head_that_never_ends_is_cut_off_at_the_size_limit(running: Running) -> None:
    with connected(running) as sock:
        sock.sendall(b"GET /v2 HTTP/1.1\r\nx: ")
        sent = 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while sent < 100 * MAX_HEAD_BYTES:
                sent += sock.send(b"a" * 1000)
        assert sent < 100 * MAX_HEAD_BYTES, "the head was read without a limit"


@pytest.mark.parametrize("sent", [b"", b"GET /v2 HT", b"GET /v2 HTTP/1.1\r\nhost: localhost\r\n"])
def test_an_incomplete_head_times_out(
    running: Running, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(http_connection, "HEAD_TIMEOUT_S", 0.05)
    with connected(running) as sock:
        send(sock, sent)  # on a busy machine the 408 may come first
        found = receive(sock)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    assert found.startswith(b"HTTP/1.1 408 ")
    assert b"the request's head took longer" in found


def test_the_timeout_of_heads_does_not_apply_to_bodies(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connection, "HEAD_TIMEOUT_S", 0.05)
    with connect_with_head(running) as sock:
        with connected(running) as idle:
            assert receive(idle).startswith(b"HTTP/1.1 408 ")  # the timeout has passed
        sock.sendall(BODY)
        assert receive(sock).startswith(b"HTTP/1.1 200 OK")


def connect_with_head(running: Running) -> socket.socket:
    """A connection whose head arrived within the timeout, as `100 Continue` shows. A busy machine
    may need several attempts.
    """
    while True:
        sock = connected(running)
        send(sock, POST + JSON_HEAD + LENGTH + b"expect: 100-continue\r\n\r\n")
        found = receive(sock)
        if found.startswith(b"HTTP/1.1 100"):
            return sock
        sock.close()
        assert found.startswith(b"HTTP/1.1 408 "), found


ROUTES = [
    ("GET", "/nowhere", 404, "no route '/nowhere'"),
    ("GET", "/v2//", 404, "no route '/v2//'"),
    ("GET", "/v2/models/../../etc/passwd", 404, "no route"),
    ("GET", "/v2/models/%2e%2e%2f%2e%2e%2fetc/ready", 404, "no model '../../etc'"),
    ("GET", "/v2/models/ec%00ho", 400, "the path has the control character %00 in it"),
    ("POST", "/v2/models/echo%0A/infer", 400, "the path has the control character %0A in it"),
    ("GET", "/v2/health/ready%0a", 400, "the path has the control character %0A in it"),
    ("GET", "/nowhere%7f", 400, "the path has the control character %7F in it"),
    ("GET", "/nowhere%250A%C2%85", 404, "no route '/nowhere%0A\\x85'"),
    ("GET", "/v2/models/" + "x" * 5000, 404, "no route of more than 1024 characters"),
    ("GET", "/v2/models/nobody/ready", 404, "no model 'nobody'; served: echo"),
    ("GET", "/v2/models/echo/versions/9", 404, "no version '9'"),
    ("GET", "/v2/models/echo/versions/..%2f1", 404, "no route"),
    ("POST", "/v2/models/echo/versions/01/infer", 404, "no version '01'"),
    ("POST", "/v2/models/nobody/infer", 404, "no model 'nobody'"),
    ("POST", "/v2/models/echo/generate", 404, "no route"),
    ("GET", "/v2/models/echo/config", 404, "no route"),
    ("GET", "/v2/models/echo/stats", 404, "no route"),
    ("GET", "/v2/systemsharedmemory/status", 404, "no route"),
    ("GET", INFER, 405, "GET is not allowed"),
    ("PUT", INFER, 405, "PUT is not allowed"),
    ("DELETE", "/v2/models/echo", 405, "DELETE is not allowed"),
    ("POST", "/v2/health/ready", 405, "POST is not allowed"),
    ("POST", "/metrics", 405, "POST is not allowed"),
    ("POST", "/v2/repository/models/echo/unload", 501, "is off"),
    ("POST", "/v2/repository/models/nobody/load", 501, "is off"),
    ("POST", "/v1/models/echo:predict", 501, "use POST /v2/models/echo/infer"),
    ("POST", "/v1/models/nobody:explain", 404, "no model 'nobody'"),
]


def test_head_is_answered_like_get_without_the_body(client: httpx.Client) -> None:
    for path in ("/v2/health/live", "/v2", "/metrics", "/nowhere"):
        full, bare = client.get(path), client.head(path)
        assert (bare.status_code, bare.content) == (full.status_code, b"")
        assert bare.headers["content-type"] == full.headers["content-type"]
        assert "content-length" in bare.headers


@pytest.mark.parametrize(("method", "path", "status", "words"), ROUTES)
def test_an_unknown_route_or_method_is_an_error(
    client: httpx.Client, method: str, path: str, status: int, words: str
) -> None:
    reply = client.request(
        method, httpx.URL(f"{client.base_url}").copy_with(raw_path=path.encode())
    )
    assert reply.status_code == status
    check_text(reply.json()["error"], words)
    if status == 405:
        assert reply.headers["allow"]
    assert client.post(INFER, json=infer_body()).status_code == 200


def test_an_unknown_openai_route_has_openais_error_body(client: httpx.Client) -> None:
    for path in ("/v1/nowhere", "/openai/v1/embeddings"):
        error = client.get(path).json()["error"]
        assert error["type"] == "invalid_request_error"
        check_text(error["message"], "no route")


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"[]", "ready"), (b'{"ready": 1}', "true or false"), (b'{"x": 1}', "ready"), (b"{", "JSON")],
)
def test_an_invalid_body_for_the_repository_index_is_a_400(
    client: httpx.Client, body: bytes, words: str
) -> None:
    reply = client.post("/v2/repository/index", content=body)
    assert reply.status_code == 400
    check_text(reply.json()["error"], words)
