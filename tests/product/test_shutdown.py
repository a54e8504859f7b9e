"""SIGTERM with real work in flight: the command line's server, both models, no answer is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import httpx
import pytest

from predictors.cli.child import held_ports
from tests.http.echo import PATIENCE_S
from tests.product.conftest import CHECKPOINTS
from tests.product.test_same_answer_everywhere import prompt_tensor

SETTINGS = {
    "PREDICTORS_FLUX_MAX_SEQUENCE_LENGTH": "32",
    "PREDICTORS_FLUX_DEFAULT_STEPS": "50",
    "PREDICTORS_FLUX_TIERS": "lossless",
    "OMP_NUM_THREADS": "1",
    "PREDICTORS_OVERLOAD_LOOP_LAG_S": "0",  # a busy machine makes the event loop late
}


class Server:
    """The command line's server; `lines` are those of its log."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.http_port, grpc_port = ports
        models = [f"--model={n}={CHECKPOINTS / f'shapes-{n}'}" for n in ("flux", "qwen-vl")]
        flags = ["--port", str(self.http_port), "--grpc-port", str(grpc_port)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "predictors", "serve", *models, *flags],
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
        return httpx.post(f"{self.url}{route}", json=body, timeout=PATIENCE_S)

    def ask_until_shown(
        self, pool: ThreadPoolExecutor, route: str, body: Any, sample: str
    ) -> Future[httpx.Response]:
        """Ask, and return while the work is on: once `/metrics` has this line. Work that was over
        before the line was seen is asked for again."""
        asked = pool.submit(self.ask, route, body)
        with httpx.Client(timeout=PATIENCE_S) as client:
            while sample not in client.get(f"{self.url}/metrics").text:
                if wait([asked], timeout=0.05).done:  # no event comes from another process
                    asked = pool.submit(self.ask, route, body)
        return asked

    def begin(self, route: str, body: bytes) -> socket.socket:
        """A request whose body the server waits for."""
        head = f"POST {route} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
        sock = socket.create_connection(("127.0.0.1", self.http_port), PATIENCE_S)
        sock.sendall(f"{head}expect: 100-continue\r\n\r\n".encode())
        assert sock.recv(65_536).startswith(b"HTTP/1.1 100 ")
        return sock


@pytest.fixture
def server() -> Iterator[Server]:
    with held_ports(2) as ports:
        running = Server(ports)
        yield running
        running.process.kill()
        running.process.communicate()


def test_sigterm_finishes_what_was_accepted_and_refuses_what_comes_later(server: Server) -> None:
    for model in ("flux", "qwen-vl"):
        del model
        server.read_until(" is ready")
    long = {"num_inference_steps": 40, "width": 256, "height": 256}
    prompts = prompt_tensor("a large red circle", "a small blue star")
    draw = {"inputs": [prompts], "parameters": long}
    begun = {"inputs": [prompt_tensor("a")], "parameters": {"num_inference_steps": 1}}
    infer = "/v2/models/flux/infer"
    chat = {"model": "qwen-vl", "max_tokens": 400, "ignore_eos": True,
            "messages": [{"role": "user", "content": "Hello"}]}  # fmt: skip
    with (
        ThreadPoolExecutor(2) as pool,
        httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client,
    ):
        drawing = server.ask_until_shown(pool, infer, draw, 'requests_running{model="flux"} 2.0')
        talking = server.ask_until_shown(
            pool, "/v1/chat/completions", chat, 'requests_running{model="qwen-vl"} 1.0'
        )
        beginning = server.begin(infer, json.dumps(begun).encode())
        server.process.send_signal(signal.SIGTERM)
        server.read_until("draining")
        late = client.post(infer, json=draw)
        probe = client.get("/v2/health/ready")
        with beginning:  # a body that is not whole is not waited for
            assert beginning.recv(65_536).startswith(b"HTTP/1.1 503 ")
        replies = [drawing.result(), talking.result()]
    assert [reply.status_code for reply in replies] == [200, 200]
    assert (late.status_code, probe.status_code) == (503, 503)
    assert "retry-after" in late.headers
    server.read_until("stopped with exit code 0")
    assert server.process.wait(PATIENCE_S) == 0
