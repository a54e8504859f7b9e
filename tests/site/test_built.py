"""The site that `make site` has built: every link, anchor and picture leads somewhere on it, and no
page loads anything from another host."""

from __future__ import annotations

import os
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tools.site import OUT, configuration, sources

HTML = OUT / "html"
LOADING = {"audio", "embed", "iframe", "img", "input", "object", "script", "source", "track"}
LOADED_LINKS = {"icon", "stylesheet", "preload", "prefetch", "modulepreload", "manifest"}
ELSEWHERE = re.compile(r"(?:@import\s|url\()\s*['\"]?\s*(?:https?:)?//", re.IGNORECASE)


class Page(HTMLParser):
    """The ids of a page, the addresses of its links, and those of what a browser loads with it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and LOADED_LINKS & set(given.get("rel", "").split()):
            self.loaded.append(given["href"])
        if tag in LOADING:
            self.loaded += [given[name] for name in ("src", "data", "poster") if name in given]
            self.loaded += [part.split()[0] for part in given.get("srcset", "").split(",") if part]


@cache
def built(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def html_pages() -> list[Path]:
    return sorted(HTML.rglob("*.html"))


def leads_to(page: Path, address: str) -> tuple[Path, str]:
    """The file of a relative address on a page, and the anchor in it."""
    parts = urlsplit(address)
    path = Path(os.path.normpath(page.parent / unquote(parts.path))) if parts.path else page
    return (path / "index.html" if path.is_dir() else path), unquote(parts.fragment)


def test_every_page_was_built() -> None:
    for target in sources().values():
        folder = target.removesuffix(".md").removesuffix("README").removesuffix("index")
        assert (HTML / folder / "index.html").is_file(), target


def test_every_page_is_in_the_navigation() -> None:
    listed = configuration(sources())
    assert [page for page in sources().values() if f'"{page}"' not in listed] == []


def test_every_link_and_anchor_leads_somewhere() -> None:
    lost = []
    for page in html_pages():
        if page.name == "404.html":  # it is served in place of any page: its links are absolute
            continue
        for address in built(page).links:
            if urlsplit(address).scheme or address.startswith("//"):
                continue
            path, anchor = leads_to(page, address)
            if not path.is_file() or (anchor and anchor not in built(path).ids | {"__skip"}):
                lost.append(f"{page.relative_to(HTML)}: {address}")
    assert lost == []


def test_no_page_loads_anything_from_another_host() -> None:
    for page in html_pages():
        away = [a for a in built(page).loaded if urlsplit(a).netloc]
        assert away == [], page.relative_to(HTML)
        assert not ELSEWHERE.search(page.read_text(encoding="utf-8")), page.relative_to(HTML)
    for sheet in HTML.rglob("*.css"):
        assert not ELSEWHERE.search(sheet.read_text(encoding="utf-8")), sheet.relative_to(HTML)


def test_everything_that_a_page_loads_is_there() -> None:
    for page in html_pages():
        if page.name != "404.html":
            gone = [a for a in built(page).loaded if not leads_to(page, a)[0].is_file()]
            assert [a for a in gone if not a.startswith("data:")] == [], page.relative_to(HTML)


@pytest.mark.parametrize("scheme", ["default", "slate"])
def test_pages_are_light_and_dark(scheme: str) -> None:
    assert f'data-md-color-scheme="{scheme}"' in (HTML / "index.html").read_text(encoding="utf-8")
