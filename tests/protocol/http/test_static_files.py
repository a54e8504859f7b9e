"""Files of a page: types, tags, headers, and no way out of the folder."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from predictors.protocol.http.app import RestApp
from predictors.protocol.http.static_files import POLICY, StaticPage

FILES = {"index.html": b"<p>page</p>", "a.js": b"1", "b.css": b"p{}", "notes.bin": b"secret"}


@pytest.fixture
def app(tmp_path: Path) -> RestApp:
    folder = tmp_path / "page"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner/index.html").write_bytes(b"below")
    (tmp_path / "outside.html").write_bytes(b"outside")
    for name, body in FILES.items():
        (folder / name).write_bytes(body)
    return RestApp(StaticPage("/docs", folder).routes(), access_log=False)


def get(app: RestApp, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a GET without an HTTP connection."""
    sent: list[Any] = []

    async def run() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        given = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
        scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode()}
        more = {"headers": given, "client": ("127.0.0.1", 1), "query_string": b""}
        await app(scope | more, receive, send)

    asyncio.run(run())
    found = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], found, sent[1]["body"]


@pytest.mark.parametrize(
    ("path", "name", "kind"),
    [
        ("/docs", "index.html", "text/html; charset=utf-8"),
        ("/docs/a.js", "a.js", "text/javascript; charset=utf-8"),
        ("/docs/b.css", "b.css", "text/css; charset=utf-8"),
    ],
)
def test_a_file_comes_with_its_type_and_a_policy(
    app: RestApp, path: str, name: str, kind: str
) -> None:
    status, headers, body = get(app, path)
    assert (status, body, headers["content-type"]) == (200, FILES[name], kind)
    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-length"] == str(len(body))


def test_the_policy_lets_no_text_run_and_names_no_other_host() -> None:
    assert "unsafe" not in POLICY
    assert "http" not in POLICY
    assert "*" not in POLICY
    assert POLICY.startswith("default-src 'none'")


@pytest.mark.parametrize("told", ["{tag}", 'W/{tag}, "x"', '"x" , {tag}', "*"])
def test_a_known_file_is_not_sent_again(app: RestApp, told: str) -> None:
    tag = get(app, "/docs/a.js")[1]["etag"]
    status, headers, body = get(app, "/docs/a.js", if_none_match=told.format(tag=tag))
    assert (status, body, headers["etag"]) == (304, b"", tag)
    assert "content-length" not in headers
    assert get(app, "/docs/a.js", if_none_match='"other"')[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/docs/none.js", "/docs/notes.bin", "/docs/inner", "/docs/inner/index.html", "/docs/..",
        "/docs/../outside.html", "/docs//etc/passwd", "/docs/..%2foutside.html", "/docs/.",
        "/docs/..\\outside.html", "/docs/A.JS", "/docs/index.html/",
        "/docs/" + "x" * 900,
    ],
)  # fmt: skip
def test_no_other_name_leads_anywhere(app: RestApp, path: str) -> None:
    status, _, body = get(app, path)
    assert status == (307 if path == "/docs/index.html/" else 404)
    assert body not in (FILES["notes.bin"], b"outside", b"below")


def test_a_name_with_a_control_character_is_refused(app: RestApp) -> None:
    assert get(app, "/docs/a.js\0.html")[0] == 400


def test_with_a_slash_the_page_is_a_relative_redirect(app: RestApp) -> None:
    for path in ("/docs/", "/docs/index.html"):
        status, headers, _ = get(app, path)
        assert (status, headers["location"]) == (307, "../docs")


def test_heads_are_answered_too(app: RestApp, tmp_path: Path) -> None:
    for route in StaticPage("/docs", tmp_path / "page").routes():
        assert isinstance(route, Route)
        assert route.methods == {"GET", "HEAD"}
