"""Short hashes of everything an image depends on: an image of the same hash is not rebuilt."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path

from tests.e2e.image.places import ROOT

SUITE = "bookworm"
BASE_PACKAGES = (
    "ca-certificates", "gcc", "libc6-dev", "libgomp1", "libstdc++6", "python3", "python3-dev",
    "python3-venv", "tini",
)  # fmt: skip
"""All that the Dockerfile's stage `system` asks for, so that the build needs no apt."""

PRODUCT_STAGE = "FROM system AS product"


def base_key() -> str:
    """Of the Debian beneath everything."""
    return _digest(SUITE, *BASE_PACKAGES)


def wheels_key(root: Path = ROOT) -> str:
    """Of the wheels: pins, hashes, dependencies, and the stages of the Dockerfile up to them."""
    stages, found, _ = (root / "Dockerfile").read_text().partition(PRODUCT_STAGE)
    assert found, f"the Dockerfile has no line {PRODUCT_STAGE!r}"
    instructions = [line for line in stages.splitlines() if not line.startswith("#")]
    pins = [(root / name).read_text() for name in ("constraints.txt", "hashes.txt")]
    return _digest(base_key(), *instructions, *pins, *requirements(root))


def requirements(root: Path = ROOT) -> list[str]:
    """The dependencies in pyproject.toml, with those of the extras that the image has."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = (project["optional-dependencies"][name] for name in default_of("EXTRAS", root).split())
    return sum(extras, start=list(project["dependencies"]))


def default_of(argument: str, root: Path = ROOT) -> str:
    """The default value of an ARG of the Dockerfile."""
    found = re.search(rf'^ARG {argument}="?([^"\n]*)', (root / "Dockerfile").read_text(), re.M)
    assert found, f"the Dockerfile has no ARG {argument}"
    return found[1]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
