"""The files of the playground on the disk: nothing in them leads out, and all are packed."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path

import pytest

from predictors.protocol.http.static_files import INDEX, TYPES

ROOT = Path(__file__).parents[2]
FOLDER = "playground/"
"""Where the page asks for its files, so that it works behind a path prefix."""
NAMESPACE = b"http://www.w3.org/2000/svg"  # a name, which no browser fetches
ON_DISK = sorted((ROOT / "predictors/playground/page").iterdir())
FILES = {path.name: path.read_bytes() for path in ON_DISK}


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


ELEMENTS = Elements(FILES[INDEX].decode()).found


def test_every_file_of_the_folder_is_served() -> None:
    assert {path.suffix for path in ON_DISK} <= set(TYPES)
    assert INDEX in FILES


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_file_leads_to_another_host(name: str) -> None:
    body = FILES[name].replace(NAMESPACE, b"")
    assert re.findall(rb"https?:|\bwss?:|\bftp:|url\(\s*['\"]?//|[\"'(=]//", body) == []


def test_the_page_has_no_inline_script_or_style() -> None:
    for tag, attributes in ELEMENTS:
        assert tag != "style"
        assert tag != "script" or attributes.get("src"), attributes
        assert not [name for name in attributes if name == "style" or name.startswith("on")]


def test_every_address_of_the_page_is_relative_and_there() -> None:
    addresses = [
        value for _, found in ELEMENTS for key, value in found.items() if key in ("src", "href")
    ]
    own = [value or "" for value in addresses if value and not value.startswith("#")]
    others = {"openapi.json", "docs"}
    assert others <= set(own)
    for address in own:
        assert not address.startswith("/"), "a path prefix would be lost"
        assert address in others or address.removeprefix(FOLDER) in FILES, address


def test_every_import_of_a_module_is_a_file_beside_it() -> None:
    for name, file in FILES.items():
        if name.endswith(".js"):
            for module in re.findall(
                r'^(?:import .*|\} )from "([^"]+)"', file.decode(), re.MULTILINE
            ):
                assert module.removeprefix("./") in FILES, (name, module)


def test_every_id_that_a_module_asks_for_is_in_the_page() -> None:
    known = {attributes.get("id") for _, attributes in ELEMENTS}
    for name, file in FILES.items():
        if name.endswith(".js"):
            asked = set(re.findall(r'byId\("([\w-]+)"\)', file.decode()))
            assert asked - known == set(), name


def test_text_is_never_parsed_as_html_or_code() -> None:
    for name, file in FILES.items():
        if name.endswith(".js"):
            used = rb"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
            assert re.search(used, file) is None, name


def test_the_wheel_and_the_image_have_every_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["predictors.playground"]
    for path in ON_DISK:
        name = path.relative_to(ROOT / "predictors/playground").as_posix()
        assert any(fnmatch(name, pattern) for pattern in patterns), name
    assert "!predictors/**" in (ROOT / ".dockerignore").read_text().split()
