"""More connections than the process may have open files: requests and probes are still served."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest

from predictors.protocol.kserve_sdk import pb, pb_grpc
from tests.http.echo import PATIENCE_S, infer_body

ROOT = Path(__file__).resolve().parents[2]
FILES = 200
CROWD = 400
CALLERS = 8
HALF_A_HEAD = b"POST /v2/models/echo/infer HTTP/1.1\r\nhost: localhost\r\n"
HALF_A_BODY = HALF_A_HEAD + b"content-length: 1000\r\n\r\n{"


@pytest.fixture(scope="module")
def ports() -> Iterator[tuple[int, int]]:
    """HTTP and gRPC ports of a server process that may open 200 files."""
    command = f"ulimit -n {FILES} && exec {sys.executable} tests/http/serve_held.py 60 0"
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        http_port, grpc_port, *_ = json.loads(process.stdout.readline())
        process.stdin.write("open\n")
        process.stdin.flush()
        yield http_port, grpc_port
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def port(ports: tuple[int, int]) -> int:
    return ports[0]


@contextlib.contextmanager
def open_connections(port: int, sent: bytes) -> Iterator[list[socket.socket]]:
    """Open many connections that have sent `sent`."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2 * CROWD:
        pytest.skip("the tests may not open as many files")
    with contextlib.ExitStack() as stack:
        sockets = []
        for i in range(CROWD):
            # from many addresses: one caller may hold half of the connections with bodies
            source = (f"127.0.0.{1 + i % CALLERS}", 0)
            sock = socket.create_connection(("127.0.0.1", port), PATIENCE_S, source)
            sockets.append(stack.enter_context(sock))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(sent)
        yield sockets


def end(sock: socket.socket) -> None:
    """Send the end of the stream, and wait until the server has closed the connection."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65_536):
            continue


def get_status(port: int, path: str) -> int:
    """The status of a GET on its own connection."""
    return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_S).status_code


def infer(port: int) -> httpx.Response:
    url = f"http://127.0.0.1:{port}/v2/models/echo/infer"
    return httpx.post(url, json=infer_body("mine"), timeout=PATIENCE_S)


@pytest.mark.parametrize("sent", [b"", HALF_A_HEAD], ids=["idle", "half a head"])
def test_idle_connections_are_closed_for_new_requests(port: int, sent: bytes) -> None:
    with open_connections(port, sent):
        for _ in range(20):
            assert get_status(port, "/v2/health/live") == 200
            assert infer(port).json()["outputs"][0]["data"] == ["mine"]


def test_with_all_connections_busy_probes_are_answered_and_others_get_503(port: int) -> None:
    with open_connections(port, HALF_A_BODY) as sockets:
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/echo/ready", "/metrics"):
            assert get_status(port, path) == 200
        refused = infer(port)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["connection"] == "close"
        assert "no place" in refused.json()["error"]
        for sock in sockets:
            end(sock)
    assert infer(port).status_code == 200


def test_idle_grpc_connections_take_no_http_slots_and_are_closed(
    ports: tuple[int, int],
) -> None:
    http_port, grpc_port = ports
    with open_connections(grpc_port, b""):
        for _ in range(20):
            assert get_status(http_port, "/v2/health/live") == 200
            assert infer(http_port).json()["outputs"][0]["data"] == ["mine"]
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        live = pb_grpc.GRPCInferenceServiceStub(channel).ServerLive
        assert live(pb.ServerLiveRequest(), timeout=PATIENCE_S, wait_for_ready=True).live
