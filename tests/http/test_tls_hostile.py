"""Hostile connections to the TLS ports: handshakes that stop, rubbish, and records of one byte.
Others are answered meanwhile.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import grpc
import pytest

from predictors import metrics
from predictors.protocol.grpc import connection_options
from tests.http.echo import PATIENCE_S, Running, infer_body
from tests.http.test_tls import AUTHORITY, LIVE, dial, ended, grpc_ready, https, secured

HELLO_HEAD = b"\x16\x03\x01\x40\x00"  # a record of 16 KiB
NO_HELLO = {
    "rubbish": HELLO_HEAD + b"\xff" * 2**14,
    "a record of 64 KiB": b"\x16\x03\x01\xff\xff" + b"\x01" * 65_535,
    "a hello of 16 MB": HELLO_HEAD + b"\x01\xff\xff\xff" + bytes(2**14 - 4),
    "an alert": b"\x15\x03\x01\x00\x02\x02\x28",
    "SSL 2": b"\x80\x2e\x01\x00\x02" + bytes(41),
    "an answer in place of a hello": b"\x16\x03\x03\x00\x04\x02\x00\x00\x00",
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with secured(tmp_path_factory.mktemp("tls")) as (found, _):
        yield found


def ports(running: Running) -> dict[str, int]:
    return {"rest": running.server.http_port, "grpc": running.server.grpc_port}


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), PATIENCE_S)


def others_are_answered(running: Running) -> bool:
    with https(running, AUTHORITY.client_context()) as http:
        is_live = http.get("/v2/health/live").status_code == 200
    return is_live and grpc_ready(running, grpc.ssl_channel_credentials(AUTHORITY.pem))


def num_failed() -> float:
    return float(metrics.tls_handshake_failures_total._value.get())


def client_hello() -> bytes:
    arriving, leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = AUTHORITY.client_context().wrap_bio(arriving, leaving, server_hostname="localhost")
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return leaving.read()


@pytest.mark.parametrize("port", ["rest", "grpc"])
@pytest.mark.parametrize("raw", NO_HELLO.values(), ids=NO_HELLO)
def test_what_is_no_hello_ends_its_own_connection_alone(
    running: Running, port: str, raw: bytes
) -> None:
    before = num_failed()
    with connected(ports(running)[port]) as connection:
        with suppress(ConnectionError):
            connection.sendall(raw)
        with suppress(ConnectionError):
            while connection.recv(4096):  # an alert, perhaps
                pass
    assert others_are_answered(running)
    assert num_failed() == before + (port == "rest")


@pytest.mark.parametrize("port", ["rest", "grpc"])
@pytest.mark.parametrize("size", [1, 5, 100, 10_000], ids=lambda size: f"{size} bytes")
def test_handshakes_that_stop_keep_nobody_out(running: Running, port: str, size: int) -> None:
    """10,000: the hello is whole, and the server has signed."""
    hello = client_hello()[:size]
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(connected(ports(running)[port])).sendall(hello)
        assert others_are_answered(running)


def test_a_handshake_with_grpc_that_stops_is_ended_in_time(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_options, "HANDSHAKE_MS", 50)
    with (
        secured(tmp_path_factory.mktemp("tls")) as (running, _),
        connected(running.server.grpc_port) as connection,
    ):
        connection.sendall(client_hello()[:100])
        assert ended(connection)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_request_in_records_of_one_byte_is_answered(
    running: Running, version: ssl.TLSVersion
) -> None:
    body = json.dumps(infer_body("x" * 20_000)).encode()
    head = b"POST /v2/models/echo/infer HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    request = head + b"content-length: %d\r\n\r\n" % len(body) + body
    with dial(running, AUTHORITY.client_context(), version) as connection:
        for i in range(len(request)):
            connection.sendall(request[i : i + 1])
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["outputs"][0]["data"] == ["x" * 20_000]


@pytest.mark.parametrize("names", [["h2"], ["http/1.1"], ["a" * 255, "h3"], []], ids=str)
def test_rest_speaks_http_1_whatever_a_client_offers(running: Running, names: list[str]) -> None:
    context = AUTHORITY.client_context()
    if names:
        context.set_alpn_protocols(names)
    with dial(running, context) as connection:
        assert connection.selected_alpn_protocol() in {None, "http/1.1"}
        connection.sendall(LIVE)
        assert connection.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize("names", [["http/1.1"], []], ids=str)
def test_grpc_ends_a_client_that_does_not_offer_http_2(running: Running, names: list[str]) -> None:
    context = AUTHORITY.client_context()
    if names:
        context.set_alpn_protocols(names)
    with (
        connected(running.server.grpc_port) as plain,
        suppress(ConnectionError),
        context.wrap_socket(plain, server_hostname="127.0.0.1") as own,
    ):
        own.sendall(LIVE)
        assert own.recv(1) == b""
    assert others_are_answered(running)
