"""The playground over HTTP: its files, their headers, and what it leaves as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest

from predictors.operators.page_routes import is_page_on, page_routes
from predictors.protocol.http.static_files import INDEX, POLICY, TYPES
from predictors.protocol.key_file import ApiKey, digest_of, new_key, write_keys
from predictors.settings import AccessSettings, ServerSettings, Settings
from tests.http.echo import PATIENCE_S, Running, echo, serving, small_settings

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
FOLDER = Path(__file__).parents[2] / "predictors/playground/page"
FILES = {path.name: path.read_bytes() for path in FOLDER.iterdir()}
KEY = new_key()


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    file.write_bytes(write_keys([ApiKey("ann", digest_of(KEY))]))
    own = replace(small_settings(), access=AccessSettings(keys_file=str(file)))
    with serving(echo("echo", own), settings=own, routes=page_routes(own)) as running:
        yield running


@pytest.fixture
def http(keyed: Running) -> Iterator[httpx.Client]:
    with keyed.client() as client:
        yield client


def without_docs(page: bytes) -> bytes:
    """The page without its link to `/docs`, which is off where a key is needed."""
    (line,) = [line for line in page.splitlines(keepends=True) if b'href="docs"' in line]
    return page.replace(line, b"")


@pytest.mark.parametrize("path", ["/", "/playground"])
def test_a_browser_gets_the_page_without_a_key(http: httpx.Client, path: str) -> None:
    reply = http.get(path, headers=BROWSER)
    assert (reply.status_code, reply.content) == (200, without_docs(FILES[INDEX]))
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.headers["content-security-policy"] == POLICY


@pytest.mark.parametrize("name", sorted(set(FILES) - {INDEX}))
def test_every_file_has_its_type_and_is_asked_for_again_with_its_tag(
    http: httpx.Client, name: str
) -> None:
    path = f"/playground/{name}"
    reply = http.get(path)
    assert (reply.status_code, reply.content) == (200, FILES[name])
    assert reply.headers["content-type"] == TYPES[name[name.rfind(".") :]]
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["content-security-policy"] == POLICY
    head = http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(FILES[name]))
    known = http.get(path, headers={"if-none-match": reply.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    assert "content-length" not in known.headers
    assert known.headers["etag"] == reply.headers["etag"]
    assert http.post(path, headers={"x-api-key": KEY}).status_code == 405


@pytest.mark.parametrize("accept", ["*/*", "application/json", ""])
def test_a_load_balancer_still_gets_the_liveness_message(http: httpx.Client, accept: str) -> None:
    reply = http.get("/", headers={"accept": accept})
    assert reply.json() == {"status": "alive"}
    assert "accept" in reply.headers["vary"]
    assert http.head("/").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/playground/none.js",
        "/playground/..",
        "/playground/../files.py",
        "/playground/%2e%2e%2ffiles.py",
        "/playground/..%2f..%2f..%2fetc%2fpasswd",
        "/playground/%5c..%5cfiles.py",
        "/playground//etc/passwd",
        "/playground/page.css/x",
        "/playground/PAGE.CSS",
        "/playground/__init__.py",
    ],
)
def test_nothing_but_the_files_is_found(keyed: Running, path: str) -> None:
    # httpx would resolve the dots
    connection = HTTPConnection("127.0.0.1", keyed.server.http_port, timeout=PATIENCE_S)
    with closing(connection):
        connection.request("GET", path, headers={"x-api-key": KEY})
        reply = connection.getresponse()
        assert (reply.status, b"root:" in reply.read()) == (404, False)


def test_a_slash_leads_to_the_page_whose_addresses_are_relative(http: httpx.Client) -> None:
    for path in ("/playground/", "/playground/index.html"):
        reply = http.get(path)
        assert (reply.status_code, reply.headers["location"]) == (307, "../playground")


def test_apis_need_their_key_and_pages_of_others_stay_outside(http: httpx.Client) -> None:
    assert http.get("/v1/models").status_code == 401
    assert http.get("/playgrounds").status_code == 401
    assert http.get("/playground/a/b").status_code == 401
    foreign = {"origin": "https://other.example.com", "x-api-key": KEY}
    for path in ("/playground", "/playground/main.js", "/v1/models"):
        reply = http.get(path, headers=foreign)
        assert reply.status_code == 403
        assert "access-control-allow-origin" not in reply.headers
    assert http.get("/playground", headers={"host": "rebound.example.com"}).status_code == 421


@pytest.mark.parametrize(
    ("settings", "is_on"),
    [
        ({}, True),
        ({"host": "::1"}, True),
        ({"host": "localhost"}, True),
        ({"host": "0.0.0.0"}, False),
        ({"host": "::"}, False),
        ({"host": "inference.example.com"}, False),
        ({"host": "0.0.0.0", "playground": "on"}, True),
        ({"playground": "off"}, False),
    ],
    ids=str,
)
def test_it_is_on_where_only_this_machine_asks_or_by_the_setting(
    settings: dict[str, Any], is_on: bool
) -> None:
    own = ServerSettings(**settings)
    assert is_page_on(own) is is_on
    assert bool(page_routes(Settings(server=own))) is is_on


@pytest.mark.parametrize(
    ("settings", "is_linked"),
    [({}, True), ({"docs": "off"}, False), ({"host": "::", "playground": "on"}, False)],
    ids=str,
)
def test_the_page_leads_to_the_docs_where_they_are_served(
    settings: dict[str, Any], is_linked: bool
) -> None:
    own = small_settings(server=settings)
    with (
        serving(echo("echo", own), settings=own, routes=page_routes(own)) as running,
        running.client() as client,
    ):
        page = client.get("/playground").text
        assert ('<a href="docs">' in page) is is_linked
        assert "</footer>" in page
        assert (client.get("/docs").status_code == 200) is is_linked


def test_without_it_everything_is_as_it_was() -> None:
    own = small_settings(server={"playground": "off"})
    with (
        serving(echo("echo", own), settings=own, routes=page_routes(own)) as running,
        running.client() as client,
    ):
        assert client.get("/", headers=BROWSER).json() == {"status": "alive"}
        assert client.get("/playground").status_code == 404
        assert client.get("/playground/main.js").status_code == 404


def test_the_chart_turns_it_off_in_production() -> None:
    root = Path(__file__).parents[2]
    text = (root / "charts/predictors/values-production.yaml").read_text()
    assert 'playground: "off"' in text
