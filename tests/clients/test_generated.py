"""A stock generator makes a typed client of the served document, which type-checks and works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from predictors.cli.child import ServerProcess
from tests.clients.conftest import PROGRAM_S

PROGRAM = Path(__file__).with_name("ask_generated.py")


@pytest.fixture(scope="module")
def tools() -> Path:
    """The folder with the generator's and mypy's commands."""
    python = os.environ.get("OPENAPI_PYTHON")
    if not python:
        pytest.skip("OPENAPI_PYTHON names no environment; `make test-clients` makes it")
    return Path(python).parent


def run(*command: str | Path, at: Path) -> str:
    done = subprocess.run(command, cwd=at, capture_output=True, text=True, timeout=PROGRAM_S)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def generated(tools: Path, http: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package `generated` and the program that uses it."""
    folder = tmp_path_factory.mktemp("client")
    (folder / "openapi.json").write_bytes(http.get("/openapi.json").content)
    # no hooks: it would run a ruff of its own over the files
    (folder / "config.yml").write_text("post_hooks: []\n")
    said = run(
        tools / "openapi-python-client", "generate", "--path", "openapi.json", "--meta", "none",
        "--output-path", "generated", "--config", "config.yml", at=folder,
    )  # fmt: skip
    # the generator supports no bodies that are pictures, and gives `image` and `image[]` of a form
    # one name; the edit in JSON is there
    left_out = [line for line in said.splitlines() if line.startswith(("WARNING", "Unable"))]
    assert sorted(left_out) == [
        "Unable to process schema /components/schemas/EditsForm:",
        "WARNING parsing GET /v1/images/files/{file} within pictures.",
        "WARNING parsing POST /v1/images/edits within pictures.",
    ]
    shutil.copy(PROGRAM, folder / "program.py")
    return folder


def test_its_types_hold(tools: Path, generated: Path) -> None:
    # its own client.py calls httpx in a way that httpx's types refuse; what is made of ours is
    # checked
    checked = ("--follow-imports=silent", "generated/api", "generated/models", "program.py")
    assert "no issues found" in run(tools / "mypy", *checked, at=generated)


def test_a_wrong_field_is_found_by_its_types(tools: Path, generated: Path) -> None:
    text = PROGRAM.read_text().replace("picture.seed,", "picture.sead,")
    (generated / "wrong.py").write_text(text)
    command = [tools / "mypy", "--follow-imports=silent", "wrong.py"]
    done = subprocess.run(command, cwd=generated, capture_output=True, text=True, timeout=PROGRAM_S)
    assert 'has no attribute "sead"' in done.stdout


def test_it_chats_draws_infers_and_reads_an_error(
    tools: Path, generated: Path, served: ServerProcess
) -> None:
    printed = run(tools / "python", "program.py", served.url, at=generated)
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    assert found["tokens"] in range(1, 5)
    assert found["finished"] in ("stop", "length")
    assert bytes.fromhex(found["file"]) == b"\x89PNG\r\n\x1a\n"
    assert found["seed"] == 7
    assert found["outputs"] == ["image", "seed"]
    assert "temperature" in found["error"]
