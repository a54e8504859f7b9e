"""docs/reliability.md: every fault has a row, and every row names a test that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text()
SECTION = PAGE.split("\n## Faults\n")[1].split("\n## ")[0]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in SECTION.splitlines()
    if line.startswith("| ") and not line.startswith("| fault ")
]
EXPECTED = (
    "bug in one of 13 stages", "NaN in a picture", "NaN in an answer", "preparation hangs",
    "worker killed", "worker task over its time", "more memory than it may",
    "first, a middle, the last step", "never fits", "device lost", "step hangs",
    "compile cache cut short", "full disk", "read-only compile cache", "cut short",
    "flipped bit in the middle", "tensor missing", "tensor too many", "descriptors",
    "wall clock", "SIGTERM under load", "SIGTERM twice", "SIGKILL", "SIGSTOP",
    "log that is not read", "API server away", "collector", "no name can be looked up",
    "`/tmp`", "no stdin, stdout, stderr", "another model's or a broken bundle",
)  # fmt: skip
"""Words of the faults that were asked for."""


def names_of_tests() -> set[str]:
    found = set()
    for file in TESTS.rglob("test_*.py"):
        found |= {
            node.name
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
    return found


def test_every_row_names_a_test_that_is_there() -> None:
    named = [re.fullmatch(r"`(test_\w+)`", row[-1]) for row in ROWS]
    assert all(named)
    assert {match[1] for match in named if match} - names_of_tests() == set()
    assert all(cell for row in ROWS for cell in row)


@pytest.mark.parametrize("fault", EXPECTED)
def test_every_fault_has_a_row(fault: str) -> None:
    assert any(fault in row[0] for row in ROWS)


def test_the_page_says_how_many_stages_were_tried() -> None:
    from tests.faults.test_one_row_of_eight import STAGES

    assert f"bug in one of {len(STAGES)} stages" in SECTION
