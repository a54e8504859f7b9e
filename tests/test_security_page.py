"""`docs/security.md` names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text()
SECTION = PAGE.partition("## Controls")[2].partition("\n## ")[0]
CONTROLS_BY_NAME = dict(
    re.findall(r"^\* \*\*(.+?)\*\*(.*?)(?=^\* \*\*|\Z)", SECTION, re.DOTALL | re.MULTILINE)
)
NAMED = sorted(set(re.findall(r"`([\w/]+\.py(?:::\w+)?)`", SECTION)))


@pytest.mark.parametrize("name", NAMED)
def test_a_named_test_exists(name: str) -> None:
    file, _, function = name.partition("::")
    path = ROOT / "tests" / file
    assert path.is_file()
    if function:
        tree = ast.parse(path.read_text())
        assert function in {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}


def test_every_control_has_a_test() -> None:
    assert len(CONTROLS_BY_NAME) == SECTION.count("\n* **") > 20
    for name, text in CONTROLS_BY_NAME.items():
        assert re.search(r"`[\w/]+\.py(::\w+)?`", text), name


def test_the_policy_says_how_to_report() -> None:
    policy = (ROOT / "SECURITY.md").read_text()
    for heading in ("## Reporting a vulnerability", "## Supported versions", "## Scope"):
        assert heading in policy
