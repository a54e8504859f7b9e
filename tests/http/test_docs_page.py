"""The page `/docs` is served from the package, needs no key itself, and asks no other host."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import httpx
import pytest

from predictors.protocol.http.access import is_offered, needs_key
from predictors.protocol.http.static_files import POLICY
from predictors.settings import AccessSettings, Settings
from tests.http.echo import echo, serving, small_settings

FOLDER = files("predictors.protocol.openapi") / "page"
NAMES = ("index.html", "reference.css", "reference.js")


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with serving(echo()) as running, running.client() as client:
        yield client


def test_the_page_and_its_files_come_with_the_policy(http: httpx.Client) -> None:
    for name in NAMES[1:]:
        answer = http.get(f"/docs/{name}")
        assert answer.status_code == 200
        assert answer.content == (FOLDER / name).read_bytes()
        assert answer.headers["content-security-policy"] == POLICY
        tag = answer.headers["etag"]
        again = http.get(f"/docs/{name}", headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
        head = http.head(f"/docs/{name}")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(answer.content))
    assert http.get("/docs").text == (FOLDER / "index.html").read_text()


def test_its_references_are_relative_and_exist(http: httpx.Client) -> None:
    page = http.get("/docs").text
    found = re.findall(r'(?:href|src)="([^"#][^"]*)"', page)
    assert {"docs/reference.css", "docs/reference.js", "openapi.json", "proto"} < set(found)
    for reference in found:
        assert not reference.startswith(("/", "http")), reference
        if not reference.startswith("data:"):
            assert http.get(f"/{reference}").status_code == 200, reference


def test_with_a_slash_it_is_found_too(http: httpx.Client) -> None:
    answer = http.get("/docs/", follow_redirects=True)
    assert (answer.url.path, answer.status_code) == ("/docs", 200)


@pytest.mark.parametrize("name", NAMES)
def test_the_page_names_no_other_host_and_runs_no_text(name: str) -> None:
    text = (FOLDER / name).read_text()
    assert "//" not in re.sub(r"^\s*//.*|(?<=[^:\"]) // .*", "", text, flags=re.MULTILINE)
    for sink in ("innerHTML", "eval(", "Function(", "document.write", "style=", "onclick="):
        assert sink not in text
    assert "<script>" not in text


@pytest.mark.parametrize(
    ("host", "keys", "choice", "offered"),
    [
        ("127.0.0.1", "", "auto", True),
        ("::1", "", "auto", True),
        ("0.0.0.0", "", "auto", False),
        ("127.0.0.1", "/keys", "auto", False),
        ("0.0.0.0", "/keys", "on", True),
        ("127.0.0.1", "", "off", False),
    ],
)
def test_the_setting(host: str, keys: str, choice: str, offered: bool) -> None:
    server = replace(Settings().server, host=host)
    settings = Settings(server=server, access=AccessSettings(keys_file=keys))
    assert is_offered(choice, settings) is offered


def test_off_means_that_there_is_no_such_route() -> None:
    settings = small_settings(server={"docs": "off"})
    with serving(echo(settings=settings), settings=settings) as running, running.client() as http:
        assert http.get("/docs").status_code == 404
        assert http.get("/docs/reference.js").status_code == 404
        assert "/docs" not in http.get("/openapi.json").json()["paths"]


def test_the_files_need_no_key_and_what_they_ask_for_does() -> None:
    assert [needs_key(path) for path in ("/docs", "/docs/", "/docs/a.js")] == [False] * 3
    for path in ("/docs/a/b", "/docsx", "/openapi.json", "/proto", "/docs/../v1/models"):
        assert needs_key(path)


def test_the_page_is_in_the_wheel() -> None:
    project = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    assert '"predictors.protocol.openapi" = ["page/*"]' in project
