"""The real server with both embedded checkpoints, as `make serve` starts it, once for all tests."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageDraw

from predictors.cli.child import ServerProcess
from predictors.cli.demo import MODELS

ROOT = Path(__file__).resolve().parents[2]
START_S = 300.0
PROGRAM_S = 400.0  # of a client's program, on a busy machine
# no client reads or sends anything beyond the server under test
QUIET = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "LANGSMITH_TRACING": "false",
    "PYDANTIC_AI_DISABLE_BANNER": "1",
    "PYTHONPATH": str(ROOT),
}

Ask = Callable[[str], dict[str, Any]]


class LinkingServer(ServerProcess):
    """A server that may answer with links to its pictures. Its loop may be late."""

    def command(self) -> Sequence[str]:
        settings = (
            f"PREDICTORS_SERVER_PUBLIC_URL={self.url}", "PREDICTORS_OVERLOAD_LOOP_LAG_S=0",
        )  # fmt: skip
        return ["env", *settings, *super().command()]


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("served") / "server.log"
    models = {name: ROOT / path for name, path in MODELS.items()}
    with LinkingServer(models, log) as server:
        server.wait_ready(START_S, lambda what: None)
        yield server


@pytest.fixture(scope="session")
def http(served: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=START_S) as client:
        yield client


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red circle on white, as the captioner was trained to read."""
    path = tmp_path_factory.mktemp("picture") / "circle.png"
    drawn = Image.new("RGB", (128, 128), (255, 255, 255))
    ImageDraw.Draw(drawn).ellipse((40, 40, 88, 88), fill=(220, 40, 40))
    drawn.save(path)
    return path


@pytest.fixture(scope="session")
def ask(served: ServerProcess, picture: Path) -> Ask:
    """`ask(name)`: what the program `ask_<name>.py` found, run once in the clients' environment."""
    found: dict[str, dict[str, Any]] = {}

    def run(name: str) -> dict[str, Any]:
        if name not in found:
            variable = "INSTRUCTOR_PYTHON" if name == "instructor" else "CLIENTS_PYTHON"
            python = os.environ.get(variable)
            assert python, f"{variable} names no environment: run `make test-clients`"
            grpc_target = f"127.0.0.1:{served.grpc_port}"
            command = [python, "-m", f"tests.clients.ask_{name}"]
            ran = subprocess.run(
                [*command, served.url, str(picture), grpc_target],
                cwd=ROOT, env=os.environ | QUIET, capture_output=True, text=True, timeout=PROGRAM_S,
            )  # fmt: skip
            assert ran.returncode == 0, ran.stderr[-3000:]
            found[name] = json.loads(ran.stdout.splitlines()[-1])
        return found[name]

    return run
