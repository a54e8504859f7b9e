"""Pages of listed origins may call every data route and read its answers; all others as before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from predictors.operators.admin import admin_routes
from predictors.protocol.http.access import AccessPolicy, preflight_headers
from predictors.settings import InvalidSetting
from tests.http.echo import Running, echo, infer_body, serving, small_settings
from tests.http.openai_echo import Writer, words

APP, LOCAL, SIX, OTHER = (
    "https://app.example.com", "http://localhost:3000", "http://[::1]:81", "app://obsidian.md",
)  # fmt: skip
LISTED = f"{APP}, {LOCAL},http://[0:0::1]:81, {OTHER}, http://plain.example:80"
INFER = "/v2/models/echo/infer"
FOREIGN = [
    "https://evil.example", "http://app.example.com", "https://app.example.com:444", "null", "",
    "https://app.example.com/", "https://app.example.com.evil.example", "https://xapp.example.com",
    "http://localhost", "http://localhost:3001", "https://localhost:3000", "http://[::1]:82",
    "app.example.com", "*", "https://app.example.com, https://evil.example", "app://obsidian.md:1",
    "https://app.example.com:443:443", "https://app.example.com@evil.example",
]  # fmt: skip
CHAT = {"model": "writer", "messages": [{"role": "user", "content": "a"}]}
Asked = tuple[str, str, Any]
DATA_ROUTES: list[Asked] = [
    ("POST", INFER, infer_body("a")),
    ("POST", "/v1/chat/completions", CHAT),
    ("POST", "/v1/chat/completions", CHAT | {"stream": True}),
    ("POST", "/openai/v1/chat/completions", {}),  # a 400 that the page may read
    ("GET", "/v2", None),
    ("GET", "/v2/models/echo", None),
    ("GET", "/v1/models", None),
    ("GET", "/nowhere", None),
    ("PUT", INFER, {}),
]
OPEN_ROUTES = ["/", "/metrics", "/v2/health/live", "/v2/health/ready", "/v2/models/echo/ready"]


def shared(reply: httpx.Response) -> dict[str, str]:
    return {k: v for k, v in reply.headers.items() if k.startswith("access-control-")}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    settings = small_settings(server={"allowed_origins": LISTED, "admin_port": 0})
    models = [echo("echo", settings), Writer("writer", words(), settings)]
    with serving(*models, settings=settings, admin_routes=admin_routes) as found:
        yield found


@pytest.mark.parametrize(("method", "path", "body"), DATA_ROUTES)
def test_a_page_of_a_listed_origin_may_call_and_read(
    client: httpx.Client, method: str, path: str, body: Any
) -> None:
    for origin in (APP, LOCAL, SIX, OTHER):
        reply = client.request(method, path, json=body, headers={"origin": origin})
        assert reply.status_code != 403
        assert shared(reply).pop("access-control-allow-origin") == origin
        exposed = shared(reply)["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "retry-after", "x-should-retry"} < set(exposed)
        assert len(shared(reply)) == 2  # no credentials
        assert reply.headers["vary"] == "origin"


@pytest.mark.parametrize("origin", ["HTTPS://APP.example.com", APP + ":443", APP + ".", SIX])
def test_one_origin_in_another_spelling_is_the_same(client: httpx.Client, origin: str) -> None:
    reply = client.get("/v2", headers={"origin": origin})
    assert (reply.status_code, shared(reply)["access-control-allow-origin"]) == (200, origin)


@pytest.mark.parametrize("origin", FOREIGN)
def test_a_page_of_another_origin_is_refused_and_can_not_read_why(
    client: httpx.Client, origin: str
) -> None:
    for method, path, body in DATA_ROUTES[:5]:
        reply = client.request(method, path, json=body, headers={"origin": origin})
        assert (reply.status_code, shared(reply)) == (403, {})
    asked = {"origin": origin, "access-control-request-method": "POST"}
    reply = client.options(INFER, headers=asked)
    assert (reply.status_code, shared(reply)) == (403, {})


def test_two_origins_are_refused_though_both_are_listed(client: httpx.Client) -> None:
    reply = client.get("/v2", headers=[("origin", APP), ("origin", APP)])
    assert (reply.status_code, shared(reply)) == (403, {})


def test_a_preflight_allows_the_methods_of_the_route_and_the_headers_asked_for(
    client: httpx.Client,
) -> None:
    headers = "authorization,content-type,x-stainless-os"
    asked = {"origin": APP, "access-control-request-method": "POST"}
    for path, methods in ((INFER, "POST"), ("/v2", "GET, HEAD"), ("/v1/chat/completions", "POST")):
        reply = client.options(path, headers=asked | {"access-control-request-headers": headers})
        assert (reply.status_code, reply.content) == (204, b"")
        assert "content-length" not in reply.headers
        found = shared(reply)
        assert found["access-control-allow-origin"] == APP
        assert found["access-control-allow-methods"] == methods
        assert found["access-control-allow-headers"] == headers
        assert int(found["access-control-max-age"]) > 0
        assert "access-control-allow-credentials" not in found
        vary = {value for line in reply.headers.get_list("vary") for value in line.split(", ")}
        assert vary == {"origin", "access-control-request-headers"}
    assert client.options("/nowhere", headers=asked).status_code == 404
    assert client.options(INFER, headers={"origin": APP}).status_code == 405  # no preflight
    assert client.options(INFER).status_code == 405


def test_header_names_that_are_none_are_not_repeated() -> None:
    for asked in ("a b", "a,,b", "a\x80", "a;b", "a," * 600 + "a", "a\r\nb: c"):
        assert "access-control-allow-headers" not in dict(preflight_headers(["POST"], asked))


@pytest.mark.parametrize("path", OPEN_ROUTES)
def test_probes_and_metrics_are_readable_by_no_page(client: httpx.Client, path: str) -> None:
    for origin in (APP, "https://evil.example"):
        reply = client.get(path, headers={"origin": origin})
        assert (reply.status_code, shared(reply)) == (200, {})
        asked = {"origin": origin, "access-control-request-method": "POST"}
        assert shared(client.options(path, headers=asked)) == {}


def test_answers_to_others_vary_by_origin_too(client: httpx.Client) -> None:
    own = client.headers.get("host", str(client.base_url).rstrip("/"))
    for headers in ({}, {"origin": own}):
        reply = client.get("/v2", headers=headers)
        assert (reply.status_code, shared(reply), reply.headers["vary"]) == (200, {}, "origin")


def test_a_foreign_host_stays_refused_for_a_listed_origin(client: httpx.Client) -> None:
    reply = client.get("/v2", headers={"origin": APP, "host": "evil.example"})
    assert (reply.status_code, shared(reply)) == (421, {})


def test_the_admin_port_is_for_no_page(running: Running) -> None:
    url = f"http://127.0.0.1:{running.server.admin_port}/debug/engine"
    for method in ("GET", "OPTIONS"):
        asked = {"origin": APP, "access-control-request-method": "GET"}
        reply = httpx.request(method, url, headers=asked)
        assert (reply.status_code, shared(reply)) == (403, {})


def test_a_star_lets_any_page_call() -> None:
    settings = small_settings(server={"allowed_origins": " * "})
    with serving(echo("echo", settings), settings=settings) as running, running.client() as http:
        for origin in ("https://evil.example", "null"):
            reply = http.post(INFER, json=infer_body("a"), headers={"origin": origin})
            assert (reply.status_code, shared(reply)["access-control-allow-origin"]) == (200, "*")
        assert shared(http.get("/metrics", headers={"origin": "null"})) == {}


@pytest.mark.parametrize(
    "entry",
    ["example.com", "https://a.example/", "https://a.example/x", "https://*.example.com", "null",
     "*", "https://", "https://a b", "https://u@a.example", "https://a.example:port", "//a", "é://a"],
)  # fmt: skip
def test_an_entry_that_is_no_origin_ends_the_start(entry: str) -> None:
    with pytest.raises(InvalidSetting, match="PREDICTORS_SERVER_ALLOWED_ORIGINS must be origins"):
        AccessPolicy("127.0.0.1", origins=f"https://good.example,{entry}")
