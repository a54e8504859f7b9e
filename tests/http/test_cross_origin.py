"""Requests that a browser sends for pages of other origins are refused on every data route without
effect; those of the same origin and of other clients are answered.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from predictors.operators.admin import admin_routes
from tests.http.echo import PATIENCE_S, Running, echo, infer_body, serving, small_settings

INFER = "/v2/models/echo/infer"
BODY = json.dumps(infer_body("a")).encode()
KINDS = ("text/plain", "application/x-www-form-urlencoded", "application/json", None)
DATA_ROUTES = [
    *(("POST", INFER, kind) for kind in KINDS),
    ("POST", "/v2/models/echo/versions/1/infer", None),
    ("POST", "/v2/repository/index", None),
    ("POST", "/v2/repository/models/echo/unload", None),
    ("POST", "/v2/repository/models/echo/load", None),
    *(("POST", "/v1/chat/completions", kind) for kind in KINDS),
    ("POST", "/openai/v1/chat/completions", None),
    ("POST", "/v1/images/generations", "text/plain"),
    ("POST", "/v1/images/edits", "multipart/form-data; boundary=b"),
    ("OPTIONS", INFER, None),
    ("OPTIONS", "/v1/chat/completions", None),
    ("OPTIONS", "/v2/repository/models/echo/unload", None),
    ("GET", "/v2", None),
    ("GET", "/v2/", None),
    ("GET", "/v2/models", None),
    ("GET", "/v2/models/echo", None),
    ("GET", "/v2/repository/index", None),
    ("GET", "/v1/models", None),
    ("GET", "/openai/v1/models", None),
    ("PUT", INFER, None),
    ("GET", "/nowhere", None),
]
OPEN_ROUTES = [
    "/", "/metrics", "/v2/health/live", "/v2/health/ready", "/v2/models/echo/ready",
    "/v2/models/echo/versions/1/ready",
]  # fmt: skip
WRONG = {
    "a foreign origin": ({"origin": "https://evil.example"}, 403),
    "another port of the same name": ({"origin": "http://localhost:1"}, 403),
    "an opaque origin": ({"origin": "null"}, 403),
    "a foreign host": ({"host": "evil.example"}, 421),
    "a rebound name": ({"host": "evil.example", "origin": "http://evil.example"}, 421),
}


@pytest.fixture(scope="module")
def open_repository() -> Iterator[Running]:
    """A server that allows `unload`, the most harmful route for a page."""
    settings = small_settings(server={"repository_api": True})
    with serving(echo("echo", settings), settings=settings) as running:
        yield running


@pytest.fixture
def http(open_repository: Running) -> Iterator[httpx.Client]:
    with open_repository.client() as found:
        yield found


def ask(
    http: httpx.Client, method: str, path: str, kind: str | None, **headers: str
) -> httpx.Response:
    """Send one request as a browser does."""
    if kind is not None:
        headers["content-type"] = kind
    if method == "OPTIONS":
        headers |= {
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type",
        }
    content = BODY if method in {"POST", "PUT"} else None
    return http.request(method, path, content=content, headers=headers)


@pytest.mark.parametrize(("headers", "status"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize(("method", "path", "kind"), DATA_ROUTES)
def test_a_page_of_another_origin_is_refused_in_the_routes_format(
    http: httpx.Client,
    open_repository: Running,
    method: str,
    path: str,
    kind: str | None,
    headers: dict[str, str],
    status: int,
) -> None:
    model: Any = open_repository.server.registry.models["echo"]
    before = len(model.seen)
    reply = ask(http, method, path, kind, **headers)
    assert reply.status_code == status
    error = reply.json()["error"]
    if path.startswith(("/v1", "/openai")):
        code = "forbidden" if status == 403 else "misdirected_request"
        assert (error["type"], error["code"]) == ("invalid_request_error", code)
        error = error["message"]
    assert "page" in error or "Host" in error
    assert "evil" not in error
    assert "x-request-id" in reply.headers
    assert not [name for name in reply.headers if name.startswith("access-control-")]
    assert len(model.seen) == before
    assert open_repository.server.registry.in_flight == 0
    assert http.get("/v2/models/echo/ready").status_code == 200  # it was not unloaded


@pytest.mark.parametrize("path", OPEN_ROUTES)
def test_probes_and_metrics_are_answered_for_any_origin(http: httpx.Client, path: str) -> None:
    for headers, _ in WRONG.values():
        assert ask(http, "GET", path, None, **headers).status_code == 200


@pytest.mark.parametrize("kind", KINDS[2:])
def test_a_page_of_the_same_origin_is_answered(
    http: httpx.Client, open_repository: Running, kind: str | None
) -> None:
    for name in ("localhost", "127.0.0.1", "[::1]"):
        host = f"{name}:{open_repository.server.http_port}"
        own = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
        assert ask(http, "POST", INFER, kind, **own).status_code == 200
        assert ask(http, "GET", "/v2", None, **own).status_code == 200


def test_other_clients_are_answered_under_every_loopback_name_and_port(
    http: httpx.Client,
) -> None:
    for host in ("localhost", "127.0.0.1:9999", "[::1]:80", "127.5.5.5"):
        assert ask(http, "POST", INFER, None, host=host).status_code == 200


def test_two_origin_headers_are_refused(http: httpx.Client, open_repository: Running) -> None:
    own = f"http://127.0.0.1:{open_repository.server.http_port}"
    headers = [("origin", own), ("origin", own)]
    assert http.post(INFER, content=BODY, headers=headers).status_code == 403


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_the_body_of_a_refused_request_is_not_parsed_as_requests(
    open_repository: Running, version: str
) -> None:
    address = ("127.0.0.1", open_repository.server.http_port)
    body = b"GET /v2 HTTP/1.1\r\nhost: localhost\r\n\r\n" * 50
    head = (
        f"POST {INFER} HTTP/{version}\r\nhost: localhost\r\norigin: https://evil.example\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    with socket.create_connection(address, timeout=PATIENCE_S) as sock:
        sock.sendall(head.encode() + body)
        answers = b""
        while received := sock.recv(65536):
            answers += received
    assert answers.startswith(b"HTTP/1.1 403 ")
    assert answers.count(b"HTTP/1.1 ") == 1


def test_off_loopback_any_host_is_answered_and_other_origins_are_refused() -> None:
    settings = small_settings(server={"host": "0.0.0.0"})
    with serving(echo("echo", settings), settings=settings) as running, running.client() as http:
        for host in ("flux-predictor.ns.svc.cluster.local", "10.1.2.3:8080", "localhost:9000"):
            assert ask(http, "POST", INFER, None, host=host).status_code == 200
            own = {"host": host, "origin": f"http://{host}"}
            assert ask(http, "POST", INFER, None, **own).status_code == 200
            foreign = {"host": host, "origin": "https://evil.example"}
            assert ask(http, "POST", INFER, None, **foreign).status_code == 403


def test_the_setting_limits_allowed_hosts() -> None:
    settings = small_settings(server={"host": "0.0.0.0", "allowed_hosts": "*.example.com"})
    with serving(echo("echo", settings), settings=settings) as running, running.client() as http:
        statuses = [
            ask(http, "POST", INFER, None, host=host).status_code
            for host in ("a.example.com:443", "localhost:9000", "example.org", "10.1.2.3")
        ]
        assert statuses == [200, 200, 421, 421]
        assert ask(http, "GET", "/v2/health/ready", None, host="10.1.2.3").status_code == 200


def test_the_admin_port_refuses_every_origin() -> None:
    settings = small_settings(server={"admin_port": 0})
    with ExitStack() as stack:
        model = echo("echo", settings)
        running = stack.enter_context(serving(model, settings=settings, admin_routes=admin_routes))
        own = f"http://127.0.0.1:{running.server.admin_port}"
        http = stack.enter_context(httpx.Client(base_url=own, timeout=PATIENCE_S))
        assert http.get("/debug/engine").status_code == 200
        for method, path in (("GET", "/debug/engine"), ("POST", "/debug/profile")):
            for origin in (own, "https://evil.example", "null"):
                assert ask(http, method, path, None, origin=origin).status_code == 403
            assert ask(http, method, path, None, host="evil.example").status_code == 421
