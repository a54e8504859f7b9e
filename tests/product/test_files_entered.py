"""docs/architecture.md lists the files that one picture and one chat enter: held to a trace."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.product.files_entered import ROOT

PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
INWARD = ("base.py", "serving/", "diffusion/", "chat/", "models/", "compute/")
# one more each than before engines took turns on a card; of the picture's also what runs its
# pieces; of the chat's the table that rows of a step come from; one each more since tokenizers and
# templates are read without transformers; then the counts of an engine, and what three wires share
MOST_FILES = {"picture": 73, "chat": 100}
MOST_INWARD = {"picture": 48, "chat": 68}  # from `base.py` on; 14 and 30 were the aim, see the page
Entered = dict[str, list[str]]

pytestmark = pytest.mark.timeout(900)  # a last resort: both models load and warm under a trace


@pytest.fixture(scope="module")
def entered() -> Entered:
    """The files by kind of request, in the order of their first call."""
    command = [sys.executable, "-m", "tests.product.files_entered"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=850)
    assert ran.returncode == 0, ran.stderr
    found: Entered = json.loads(ran.stdout)
    return found


def listed(heading: str) -> list[str]:
    """The files that stand under a heading of the page."""
    section = PAGE.split(f"### {heading}")[1].split("\n#")[0]
    return re.findall(r"`([\w/]+\.py)`", section)


@pytest.mark.parametrize(("kind", "heading"), [("picture", "One picture"), ("chat", "One chat")])
def test_the_page_lists_the_files_that_a_request_enters(
    entered: Entered, kind: str, heading: str
) -> None:
    assert set(listed(heading)) == set(entered[kind])
    assert len(listed(heading)) == len(set(listed(heading)))


@pytest.mark.parametrize("kind", ["picture", "chat"])
def test_a_request_enters_no_more_files_than_it_did(entered: Entered, kind: str) -> None:
    inward = [file for file in entered[kind] if file.startswith(INWARD)]
    assert len(entered[kind]) <= MOST_FILES[kind]
    assert len(inward) <= MOST_INWARD[kind], inward
