"""SIGTERM with real work in flight: the command line's server, both models, no answer is lost. The
steps of both wait for the test: work that goes on by itself may be over before a busy test looks.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from predictors.cli.child import held_ports
from tests.http.echo import PATIENCE_S
from tests.observe.daemon import wait_until
from tests.observe.faulty import FOLDER, Faults
from tests.product.conftest import CHECKPOINTS
from tests.product.test_same_answer_everywhere import prompt_tensor

MODELS = ("flux", "qwen-vl")
SETTINGS = {
    "PREDICTORS_FLUX_MAX_SEQUENCE_LENGTH": "32",
    "PREDICTORS_FLUX_TIERS": "lossless",
    "OMP_NUM_THREADS": "1",
    "PREDICTORS_OVERLOAD_LOOP_LAG_S": "0",  # a busy machine makes the event loop late
}


class Server:
    """The command line's server with the faults of a folder."""

    def __init__(self, ports: Sequence[int], folder: Path) -> None:
        self.http_port, grpc_port = ports
        self.faults = Faults(folder)
        models = [f"--model={n}={CHECKPOINTS / f'shapes-{n}'}" for n in MODELS]
        flags = ["--port", str(self.http_port), "--grpc-port", str(grpc_port)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.observe.faulty", "serve", *models, *flags],
            env=os.environ | SETTINGS | {FOLDER: str(folder)}, stderr=subprocess.PIPE, text=True,
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
        return httpx.post(f"{self.url}{route}", json=body, timeout=PATIENCE_S)

    def wait_running(self, model: str) -> None:
        """Return once a job of `model` has a slot."""
        wanted = f'predictors_requests_running{{model="{model}"}} 1.0'

        def metrics() -> str:
            return httpx.get(f"{self.url}/metrics", timeout=PATIENCE_S).text

        wait_until(lambda: wanted in metrics(), metrics, PATIENCE_S)

    def begin(self, route: str, body: bytes) -> socket.socket:
        """A request whose body the server waits for."""
        head = f"POST {route} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
        sock = socket.create_connection(("127.0.0.1", self.http_port), PATIENCE_S)
        sock.sendall(f"{head}expect: 100-continue\r\n\r\n".encode())
        assert sock.recv(65_536).startswith(b"HTTP/1.1 100 ")
        return sock


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with held_ports(2) as ports:
        running = Server(ports, tmp_path)
        yield running
        running.process.kill()
        running.process.communicate()


def test_sigterm_finishes_what_was_accepted_and_refuses_what_comes_later(server: Server) -> None:
    for _ in MODELS:
        server.read_until(" is ready")
    draw = {"inputs": [prompt_tensor("a")], "parameters": {"num_inference_steps": 4}}
    chat = {"model": "qwen-vl", "max_tokens": 40, "ignore_eos": True,
            "messages": [{"role": "user", "content": "Hello"}]}  # fmt: skip
    routes = {"/v2/models/flux/infer": draw, "/v1/chat/completions": chat}
    infer = next(iter(routes))
    for model in MODELS:
        server.faults.set(f"hang-{model}")
    with (
        ThreadPoolExecutor(len(routes)) as pool,
        httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client,
    ):
        accepted = [pool.submit(server.ask, *each) for each in routes.items()]
        for model in MODELS:
            server.wait_running(model)
        beginning = server.begin(infer, json.dumps(draw).encode())
        server.process.send_signal(signal.SIGTERM)
        server.read_until("draining")
        late = client.post(infer, json=draw)
        probe = client.get("/v2/health/ready")
        with beginning:  # a body that is not whole is not waited for
            assert beginning.recv(65_536).startswith(b"HTTP/1.1 503 ")
        for model in MODELS:
            server.faults.clear(f"hang-{model}")
        replies = [each.result() for each in accepted]
    assert [reply.status_code for reply in replies] == [200, 200]
    assert (late.status_code, probe.status_code) == (503, 503)
    assert "retry-after" in late.headers
    server.read_until("stopped with exit code 0")
    assert server.process.wait(PATIENCE_S) == 0
