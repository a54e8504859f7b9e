"""REST and gRPC over TLS: who is let in, what is refused, and that a reload drops no caller."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from predictors import metrics
from predictors.protocol.certificates import Certificates
from predictors.protocol.http import tls
from predictors.protocol.http.app import RestApp
from predictors.protocol.kserve_sdk import pb, pb_grpc
from predictors.settings import Settings
from tests.fakes import ScriptedEngine
from tests.http.echo import (
    PATIENCE_S,
    Asking,
    Running,
    echo,
    held,
    infer_body,
    serving,
    small_settings,
)
from tests.http.pki import Authority, MountedSecret

AUTHORITY = Authority()
STRANGER = Authority("another authority")
LIVE = b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"


def tls_settings(secret: MountedSecret, **server: Any) -> Settings:
    return replace(small_settings(server=server), tls=secret.settings())


@contextmanager
def secured(
    folder: Path, ca: bytes = b"", **server: Any
) -> Iterator[tuple[Running, MountedSecret]]:
    secret = MountedSecret(folder, AUTHORITY.issue(), ca)
    settings = tls_settings(secret, **server)
    with serving(echo("echo", settings), settings=settings) as running:
        yield running, secret


def https(running: Running, context: ssl.SSLContext) -> httpx.Client:
    url = f"https://127.0.0.1:{running.server.http_port}"
    limits = httpx.Limits(max_connections=1)
    return httpx.Client(base_url=url, verify=context, timeout=PATIENCE_S, limits=limits)


def dial(
    running: Running, context: ssl.SSLContext, version: ssl.TLSVersion | None = None
) -> ssl.SSLSocket:
    if version is not None:
        context.minimum_version = context.maximum_version = version
    plain = socket.create_connection(("127.0.0.1", running.server.http_port), PATIENCE_S)
    return context.wrap_socket(plain, server_hostname="127.0.0.1")


def reload(running: Running) -> bool:
    certificates = running.server._certificates
    assert certificates is not None
    return certificates.reload()


def serial(connection: ssl.SSLSocket) -> str:
    certificate = connection.getpeercert()
    assert certificate
    return str(certificate["serialNumber"])


def grpc_ready(running: Running, credentials: grpc.ChannelCredentials) -> bool:
    target = f"127.0.0.1:{running.server.grpc_port}"
    with grpc.secure_channel(target, credentials) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        ready: bool = stub.ServerReady(pb.ServerReadyRequest(), timeout=PATIENCE_S).ready
        return ready


@pytest.fixture(scope="module")
def open_to_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose clients need no certificate."""
    with secured(tmp_path_factory.mktemp("tls")) as (running, _):
        yield running


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose clients need a certificate of the authority."""
    folder = tmp_path_factory.mktemp("mtls")
    with secured(folder, AUTHORITY.pem, health_port=0, metrics_port=0) as (running, _):
        yield running


# -- TLS -------------------------------------------------------------------------------------------
def test_a_client_that_trusts_the_authority_is_answered_over_rest(open_to_all: Running) -> None:
    with https(open_to_all, AUTHORITY.client_context()) as http:
        for _ in range(2):  # on one connection
            assert http.post("/v2/models/echo/infer", json=infer_body("hi")).status_code == 200
        large = infer_body("x" * 300_000)
        assert http.post("/v2/models/echo/infer", json=large).json()["outputs"][0]["data"] == [
            "x" * 300_000
        ]


def test_a_client_that_trusts_the_authority_is_answered_over_grpc(open_to_all: Running) -> None:
    assert grpc_ready(open_to_all, grpc.ssl_channel_credentials(AUTHORITY.pem))


def test_the_certificate_is_not_of_another_authority(open_to_all: Running) -> None:
    with https(open_to_all, STRANGER.client_context()) as http, pytest.raises(httpx.ConnectError):
        http.get("/v2/health/live")
    with pytest.raises(grpc.RpcError):
        grpc_ready(open_to_all, grpc.ssl_channel_credentials(STRANGER.pem))


@pytest.mark.parametrize(
    "version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"]
)
def test_modern_versions_speak_http_1_1(open_to_all: Running, version: ssl.TLSVersion) -> None:
    context = AUTHORITY.client_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with dial(open_to_all, context, version) as connection:
        assert connection.selected_alpn_protocol() == "http/1.1"
        connection.sendall(LIVE)
        assert connection.recv(12) == b"HTTP/1.1 200"


def test_tls_1_1_is_refused(open_to_all: Running) -> None:
    context = AUTHORITY.client_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSVersion.TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSVersion.TLSv1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        dial(open_to_all, context)


def test_a_request_in_the_packet_of_the_handshakes_end_is_answered(open_to_all: Running) -> None:
    """The client's last handshake message and its request arrive together."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = AUTHORITY.client_context()
    client = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with socket.create_connection(("127.0.0.1", open_to_all.server.http_port), PATIENCE_S) as raw:
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                raw.sendall(outgoing.read())
                incoming.write(raw.recv(65536))
        client.write(LIVE)
        raw.sendall(outgoing.read())
        assert read_clear(raw, client, incoming).startswith(b"HTTP/1.1 200")


def read_clear(raw: socket.socket, client: ssl.SSLObject, incoming: ssl.MemoryBIO) -> bytes:
    while True:
        try:
            return client.read(12)
        except ssl.SSLWantReadError:
            incoming.write(raw.recv(65536))


NOT_TLS = {
    "plain HTTP": (LIVE, b"HTTP/1.1 400"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"HTTP/1.1 400"),
    "zeros": (b"\x00" * 100, b""),
    "half a record": (b"\x16\x03\x01\x00\x05hello", b""),
}


@pytest.mark.parametrize("kind", NOT_TLS)
def test_what_is_not_tls_is_closed_and_counted(open_to_all: Running, kind: str) -> None:
    sent, expected = NOT_TLS[kind]
    before = failures()
    with connect(open_to_all) as raw:
        raw.sendall(sent)
        try:
            found = b"".join(iter(lambda: raw.recv(4096), b""))
        except ConnectionResetError:
            found = b""
    assert (b"HTTP" in found) == bool(expected)
    if expected:
        assert found.startswith(expected)
        assert found.endswith(b'{"error":"this port speaks TLS; use https"}')
    assert failures() == before + 1
    with https(open_to_all, AUTHORITY.client_context()) as http:
        assert http.get("/v2/health/live").status_code == 200


def failures() -> float:
    return metrics.tls_handshake_failures_total._value.get()


def test_a_response_that_is_read_slowly_arrives_whole_before_the_connection_closes(
    open_to_all: Running,
) -> None:
    body = json.dumps(infer_body("y" * 900_000)).encode()
    head = b"POST /v2/models/echo/infer HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    head += b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    with dial(open_to_all, AUTHORITY.client_context()) as connection:
        connection.sendall(head + body)
        pieces = iter(lambda: connection.recv(4096), b"")
        answer = b"".join(pieces)
    headers, _, sent = answer.partition(b"\r\n\r\n")
    assert headers.startswith(b"HTTP/1.1 200")
    assert json.loads(sent)["outputs"][0]["data"] == ["y" * 900_000]


# -- mTLS ------------------------------------------------------------------------------------------
def test_a_client_of_the_authority_is_let_in(mutual: Running, tmp_path: Path) -> None:
    pair = AUTHORITY.issue("alice")
    with https(mutual, AUTHORITY.client_context(tmp_path, pair)) as http:
        assert http.get("/v2/health/live").status_code == 200
    credentials = grpc.ssl_channel_credentials(AUTHORITY.pem, pair.key, pair.cert)
    assert grpc_ready(mutual, credentials)


@pytest.mark.parametrize("kind", ["none", "of another authority", "expired"])
def test_a_client_without_a_good_certificate_is_not(
    mutual: Running, tmp_path: Path, kind: str
) -> None:
    pair = {
        "none": None,
        "of another authority": STRANGER.issue("alice"),
        "expired": AUTHORITY.issue("alice", days=-1),
    }[kind]
    with (
        https(mutual, AUTHORITY.client_context(tmp_path, pair)) as http,
        pytest.raises((httpx.ReadError, httpx.RemoteProtocolError, httpx.ConnectError)),
    ):
        http.get("/v2/health/live")
    key, cert = (None, None) if pair is None else (pair.key, pair.cert)
    with pytest.raises(grpc.RpcError) as failure:
        grpc_ready(mutual, grpc.ssl_channel_credentials(AUTHORITY.pem, key, cert))
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE


def test_probes_and_scrapes_of_their_own_ports_need_no_certificate(mutual: Running) -> None:
    ports = mutual.server.health_port, mutual.server.metrics_port
    for port, path in zip(ports, ("/v2/health/ready", "/metrics"), strict=True):
        assert httpx.get(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_S).status_code == 200


def test_the_application_is_told_of_https(
    open_to_all: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    answer = RestApp.__call__

    async def watched(app: RestApp, scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["scheme"])
        await answer(app, scope, receive, send)

    monkeypatch.setattr(RestApp, "__call__", watched)
    with https(open_to_all, AUTHORITY.client_context()) as http:
        http.get("/v2/health/live")
    assert seen == ["https"]


# -- reload ----------------------------------------------------------------------------------------
def test_new_files_serve_new_connections_and_drop_none(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    secret = MountedSecret(tmp_path, AUTHORITY.issue())
    with held(engine, tls_settings(secret)) as (running, _):
        context = AUTHORITY.client_context()
        trusted = grpc.ssl_channel_credentials(AUTHORITY.pem)
        with (
            https(running, context) as http,
            dial(running, context) as before,
            Asking(running) as asking,
            grpc.secure_channel(f"127.0.0.1:{running.server.grpc_port}", trusted) as channel,
        ):
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            assert stub.ServerLive(pb.ServerLiveRequest(), timeout=PATIENCE_S).live
            answer = asking.call(lambda: http.post("/v2/models/echo/infer", json=infer_body("one")))
            engine.wait_in_step()
            secret.replace(STRANGER.issue())
            assert reload(running)
            with dial(running, STRANGER.client_context()) as after:
                assert serial(after) != serial(before)
            assert grpc_ready(running, grpc.ssl_channel_credentials(STRANGER.pem))
            with pytest.raises(ssl.SSLError):
                dial(running, AUTHORITY.client_context())
            before.sendall(LIVE)
            assert before.recv(12) == b"HTTP/1.1 200"
            assert stub.ServerLive(pb.ServerLiveRequest(), timeout=PATIENCE_S).live
            engine.open()
            assert answer.result(PATIENCE_S).status_code == 200


def test_bad_files_leave_the_old_certificate_on_both_protocols(tmp_path: Path) -> None:
    with secured(tmp_path) as (running, secret):
        good = AUTHORITY.issue()
        secret.replace(replace(good, key=AUTHORITY.issue().key))
        assert not reload(running)
        with dial(running, AUTHORITY.client_context()):
            pass
        assert grpc_ready(running, grpc.ssl_channel_credentials(AUTHORITY.pem))


def test_a_client_authority_is_replaced_too(tmp_path: Path) -> None:
    with secured(tmp_path, AUTHORITY.pem) as (running, secret):
        known, unknown = AUTHORITY.issue("alice"), STRANGER.issue("alice")
        secret.replace(AUTHORITY.issue(), STRANGER.pem)
        assert reload(running)
        with https(running, AUTHORITY.client_context(tmp_path, unknown)) as http:
            assert http.get("/v2/health/live").status_code == 200
        assert grpc_ready(
            running, grpc.ssl_channel_credentials(AUTHORITY.pem, unknown.key, unknown.cert)
        )
        with pytest.raises(grpc.RpcError):
            grpc_ready(running, grpc.ssl_channel_credentials(AUTHORITY.pem, known.key, known.cert))


def test_the_files_are_followed_by_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = MountedSecret(tmp_path, AUTHORITY.issue())
    settings = replace(small_settings(), tls=secret.settings(reload_s=0.1))
    reloaded, reload_files = threading.Event(), Certificates.reload

    def seen(certificates: Certificates) -> bool:
        is_new = reload_files(certificates)
        if is_new:
            reloaded.set()
        return is_new

    monkeypatch.setattr(Certificates, "reload", seen)  # before a thread may be inside the real one
    with serving(echo("echo", settings), settings=settings) as running:
        assert not reloaded.is_set()
        secret.replace(STRANGER.issue())
        assert reloaded.wait(PATIENCE_S)
        with dial(running, STRANGER.client_context()):
            pass


# -- clients that do not finish a handshake --------------------------------------------------------
def test_silent_clients_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_S", 600.0)
    with secured(tmp_path, max_connections=8) as (running, _), ExitStack() as clients:
        silent = [clients.enter_context(connect(running)) for _ in range(20)]
        with https(running, AUTHORITY.client_context()) as http:
            assert http.get("/v2/health/live").status_code == 200
        for connection in silent[:13]:  # the other 7 and that of the answer are 8
            assert ended(connection)


def test_silent_clients_are_ended_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_S", 0.05)
    with secured(tmp_path) as (running, _), ExitStack() as clients:
        for connection in [clients.enter_context(connect(running)) for _ in range(3)]:
            assert ended(connection)


def test_a_silent_client_counts_and_a_shutdown_does_not_wait_for_it(tmp_path: Path) -> None:
    with secured(tmp_path) as (running, _):
        limit = running.server._http.connections
        counted, add = threading.Event(), limit.add

        def adding(connection: Any) -> bool:
            has_room = add(connection)
            counted.set()
            return has_room

        limit.add = adding  # type: ignore[method-assign]
        with connect(running) as silent:
            assert counted.wait(PATIENCE_S)
            assert limit.num_open == 1
            assert running.stop() == 0
            assert ended(silent)
        assert limit.num_open == 0


def connect(running: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", running.server.http_port), PATIENCE_S)


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
