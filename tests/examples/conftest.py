"""The server that the examples of the pages ask: both embedded checkpoints, the adapters that
the pages name, and the admin port to add more."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from predictors.cli.child import ServerProcess, held_ports
from predictors.cli.demo import MODELS

ROOT = Path(__file__).resolve().parents[2]
LORAS = ROOT / "checkpoints" / "shapes-loras"
START_S = 300.0
NAMED = {
    "flux:all-cyan": LORAS / "all-cyan",
    "flux:gray-ground": LORAS / "gray-ground",
    "flux:watercolour": LORAS / "all-cyan",
    "flux:ink": LORAS / "gray-ground",
}


class ExamplesServer(ServerProcess):
    """A server with room for one more adapter, from a folder of its own."""

    admin_port = 0
    lora_root = Path()

    def command(self) -> Sequence[str]:
        settings = {
            "SERVER_ADMIN_PORT": self.admin_port,
            "SERVER_LORA_ROOT": self.lora_root,
            "SERVER_ALLOWED_ORIGINS": "https://app.example.com",
            "FLUX_LORA_MAX_ACTIVE": len(NAMED) + 1,
            "OVERLOAD_LOOP_LAG_S": 0,  # a busy machine makes the event loop late
        }
        given = [f"PREDICTORS_{name}={value}" for name, value in settings.items()]
        return ["env", *given, *super().command()]


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExamplesServer]:
    folder = tmp_path_factory.mktemp("examples")
    (folder / "styles").mkdir()
    (weights,) = (LORAS / "all-cyan").glob("*.safetensors")
    shutil.copy(weights, folder / "styles" / "pencil.safetensors")
    server = ExamplesServer(
        {name: ROOT / path for name, path in MODELS.items()}, folder / "server.log", NAMED
    )
    with held_ports(1) as (server.admin_port,):
        server.lora_root = folder
        with server:
            server.wait_ready(START_S, lambda what: None)
            yield server
