"""Message boundaries on real sockets: no byte of a body becomes a request, in any packets and after
early responses.
"""

from __future__ import annotations

import json
import socket

import pytest

from tests.http.echo import PATIENCE_S, Running, infer_body, serving, small_settings
from tests.http.openai_echo import Writer, words
from tests.http.test_bad_input_http import BODY, GOOD, JSON_HEAD, LENGTH, POST, chunks

METADATA = b"GET /v2/models/echo HTTP/1.1\r\nhost: localhost\r\n"
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
LAST = METADATA + b"connection: close, upgrade\r\nupgrade: websocket\r\n\r\n"
SMUGGLED = b"GET /v2 HTTP/1.1\r\nhost: localhost\r\n\r\n"
TRAP = b"\r\nupgrade: x\r\n\r\n" + SMUGGLED


def smuggling_body(size: int) -> bytes:
    """A body that contains requests, one of them at its end, also if its length is misjudged by a
    few bytes.
    """
    tail = b"\r\n" * 200 + SMUGGLED
    return (TRAP * (size // len(TRAP) + 1))[: size - len(tail)] + tail if size > 1000 else TRAP


def connected(running: Running) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", running.server.http_port), PATIENCE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def read_responses(sock: socket.socket) -> list[tuple[int, bytes]]:
    """Status and body of each response until the server closes."""
    with sock.makefile("rb") as file:
        found = []
        while line := file.readline():
            length = 0
            while (field := file.readline()) != b"\r\n":
                name, _, value = field.partition(b":")
                length = int(value) if name == b"content-length" else length
            found.append((int(line.split(b" ")[1]), file.read(length)))
        return found


def check_three(found: list[tuple[int, bytes]], cut: int) -> None:
    assert [status for status, _ in found] == [200, 200, 200], cut
    for _, body in found[:2]:
        assert json.loads(body)["outputs"][0]["data"] == ["a red circle"], cut
    assert json.loads(found[2][1])["name"] == "echo", cut


@pytest.mark.parametrize("coding", ["length", "chunks"])
def test_upgrade_body_and_pipelined_requests_are_answered_in_any_two_pieces(
    running: Running, coding: str
) -> None:
    first = POST + UPGRADE + JSON_HEAD
    if coding == "length":
        first += LENGTH + b"\r\n" + BODY
    else:
        first += b"transfer-encoding: chunked\r\n\r\n" + chunks(BODY, 40)
    raw = first + GOOD + LAST
    for cut in range(1, len(raw)):
        with connected(running) as sock:
            sock.sendall(raw[:cut])
            sock.sendall(raw[cut:])
            check_three(read_responses(sock), cut)


EARLY = [
    (POST + b"host: localhost\r\ncontent-type: text/plain\r\n", 415),
    (b"POST /nowhere HTTP/1.1\r\nhost: localhost\r\n", 404),
    (b"POST /v2/repository/models/echo/unload HTTP/1.1\r\nhost: localhost\r\n", 501),
    (b"PUT /v2/models/echo/infer HTTP/1.1\r\nhost: localhost\r\n", 405),
    (b"POST /v2/models/nobody/infer HTTP/1.1\r\nhost: localhost\r\n", 404),
    (b"POST /v1/models/echo:predict HTTP/1.1\r\nhost: localhost\r\n", 501),
]


@pytest.mark.parametrize(("head", "status"), EARLY)
@pytest.mark.parametrize("size", [len(TRAP), 500_000, 8_000_000])
def test_a_body_after_an_early_response_is_never_parsed_as_a_request(
    running: Running, head: bytes, status: int, size: int
) -> None:
    body = smuggling_body(size)
    assert len(body) == size
    raw = head + b"content-length: %d\r\n\r\n" % size + body
    with connected(running) as sock:
        try:
            sock.sendall(raw + LAST)
        except (BrokenPipeError, ConnectionResetError):
            assert size > 2**20, "a small rest is read"
        try:
            found = read_responses(sock)
        except ConnectionResetError:
            pytest.fail("the answer was taken back by a reset")
    statuses = [status for status, _ in found]
    assert statuses in ([status], [status, 200])
    if size < 2**20:  # the body was discarded, and the next request answered
        assert statuses == [status, 200]
    if len(found) == 2:
        assert json.loads(found[1][1])["name"] == "echo"


@pytest.mark.parametrize("cut", range(1, 5))
def test_a_head_may_be_cut_inside_its_empty_line(running: Running, cut: int) -> None:
    body = json.dumps(infer_body(TRAP.decode())).encode().replace(b"\\r\\n", b"\r\n")
    head = POST + JSON_HEAD + b"content-length: %d\r\n\r\n" % len(body)
    with connected(running) as sock:
        sock.sendall(head[:-cut])
        sock.sendall(head[-cut:] + body + LAST)
        statuses = [status for status, _ in read_responses(sock)]
    assert statuses == [400, 200]  # JSON strings contain no line ends


def test_a_connection_is_kept_alive_after_early_responses(running: Running) -> None:
    with connected(running) as sock:
        for head, _ in EARLY:
            sock.sendall(head + b"content-length: %d\r\n\r\n" % len(TRAP) + TRAP)
            sock.sendall(GOOD)
        sock.sendall(LAST)
        statuses = [status for status, _ in read_responses(sock)]
    assert statuses == [x for _, status in EARLY for x in (status, 200)] + [200]


def test_a_stream_over_http_1_0_is_not_chunked_and_ends_the_connection() -> None:
    settings = small_settings()
    body = {"model": "chat", "messages": [{"role": "user", "content": "w"}], "stream": True}
    raw = json.dumps(body | {"max_tokens": 3}).encode()
    head = b"POST /v1/chat/completions HTTP/1.0\r\nconnection: keep-alive\r\n"
    with (
        serving(Writer("chat", words(), settings), settings=settings) as running,
        connected(running) as sock,
        sock.makefile("rb") as file,
    ):
        sock.sendall(head + b"content-length: %d\r\n\r\n" % len(raw) + raw)
        head, _, events = file.read().partition(b"\r\n\r\n")
    assert b"\r\nconnection: close" in head
    assert b"transfer-encoding" not in head
    assert events.startswith(b"data: {")
    assert events.endswith(b"data: [DONE]\n\n")
    assert events.count(b"\n\n") == events.count(b"data: ")
