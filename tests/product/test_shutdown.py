"""SIGTERM with real work in flight: the command line's server, both models, no answer is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from predictors.cli.child import free_ports
from tests.http.echo import PATIENCE_S
from tests.product.conftest import CHECKPOINTS
from tests.product.test_same_answer_everywhere import prompt_tensor

SETTINGS = {
    "PREDICTORS_FLUX_MAX_SEQUENCE_LENGTH": "32",
    "PREDICTORS_FLUX_DEFAULT_STEPS": "20",
    "OMP_NUM_THREADS": "1",
}


class Server:
    """The command line's server; `lines` are those of its log."""

    def __init__(self, log: Path) -> None:
        self.http_port, grpc_port = free_ports(2)
        models = [f"--model={n}={CHECKPOINTS / f'shapes-{n}'}" for n in ("flux", "qwen-vl")]
        ports = ["--port", str(self.http_port), "--grpc-port", str(grpc_port)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "predictors", "serve", *models, *ports],
            env=os.environ | SETTINGS, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.url = f"http://127.0.0.1:{self.http_port}"

    def read_until(self, word: str) -> None:
        """Read the log up to a line with `word`."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if word in line:
                return
        raise AssertionError(f"the server ended without saying {word!r}")

    def ask(self, route: str, body: Any) -> httpx.Response:
        """One answer, on a connection of its own."""
        return httpx.post(f"{self.url}{route}", json=body, timeout=60.0)

    def wait_told(self, sample: str) -> None:
        """Return once `/metrics` has this line."""
        with httpx.Client(timeout=PATIENCE_S) as client:
            while sample not in client.get(f"{self.url}/metrics").text:
                pass  # each turn asks the server; bounded by the test's time limit


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "log")
    yield running
    running.process.kill()
    running.process.communicate()


def test_sigterm_finishes_what_was_accepted_and_refuses_what_comes_later(server: Server) -> None:
    for model in ("flux", "qwen-vl"):
        del model
        server.read_until(" is ready")
    draw = {"inputs": [prompt_tensor("a large red circle", "a small blue star")]}
    chat = {"model": "qwen-vl", "max_tokens": 400, "ignore_eos": True,
            "messages": [{"role": "user", "content": "Hello"}]}  # fmt: skip
    with (
        ThreadPoolExecutor(4) as pool,
        httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client,
    ):
        drawing = pool.submit(server.ask, "/v2/models/flux/infer", draw)
        server.wait_told('requests_running{model="flux"} 2.0')
        talking = pool.submit(server.ask, "/v1/chat/completions", chat)
        server.wait_told('requests_running{model="qwen-vl"} 1.0')
        server.process.send_signal(signal.SIGTERM)
        server.read_until("draining")
        late = client.post("/v2/models/flux/infer", json=draw)
        probe = client.get("/v2/health/ready")
        replies = [drawing.result(), talking.result()]
    assert [reply.status_code for reply in replies] == [200, 200]
    assert (late.status_code, probe.status_code) == (503, 503)
    assert "retry-after" in late.headers
    server.read_until("stopped with exit code 0")
    assert server.process.wait(PATIENCE_S) == 0
