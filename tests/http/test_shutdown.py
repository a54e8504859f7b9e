"""SIGTERM with requests in flight: no accepted request is lost, new ones are refused, and the
process exits.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest

from predictors.protocol.kserve_sdk import pb, pb_grpc
from predictors.protocol.server import PredictorServer
from predictors.settings import InvalidSetting
from tests.fakes import ScriptedEngine
from tests.http.echo import (
    PATIENCE_S,
    Asking,
    TaskPredictor,
    echo,
    held,
    infer_body,
    serving,
    small_settings,
)

HERE = Path(__file__).parent


class Process:
    """A server process that the test may signal; `control` moves its engine."""

    def __init__(self, drain_timeout_s: float, linger_s: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "serve_held.py"), str(drain_timeout_s), str(linger_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=HERE.parents[1],
            env={"PYTHONPATH": str(HERE.parents[1]), "PATH": "/usr/bin:/bin"},
        )
        self._pool = ThreadPoolExecutor(16)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._process.communicate()[1]
        self.port, self.grpc_port = json.loads(line)

    def post(self, prompt: str) -> Future[httpx.Response]:
        """Send an infer request in the background."""
        return self._pool.submit(
            httpx.post,
            f"http://127.0.0.1:{self.port}/v2/models/echo/infer",
            json=infer_body(prompt),
            timeout=PATIENCE_S,
        )

    def get(self, path: str) -> httpx.Response:
        """Send a GET request."""
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE_S)

    def wait_accepted(self, times: int) -> None:
        assert self._process.stdout is not None
        for _ in range(times):
            assert self._process.stdout.readline() == "accepted\n"

    def control(self, command: str) -> None:
        """Move the engine: `steps N` or `open`."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait_log(self, words: str) -> None:
        """Wait until the process has logged these words."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if words in line:
                return
        raise AssertionError(f"never logged: {words}")

    def wait(self) -> int:
        """Wait for the exit code."""
        return self._process.wait(PATIENCE_S)

    def close(self) -> None:
        """Kill the process if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        self._pool.shutdown()


@pytest.fixture
def start() -> Iterator[object]:
    """Starts processes, and kills them after the test."""
    started: list[Process] = []

    def run(drain_timeout_s: float = PATIENCE_S, linger_s: float = 0.0) -> Process:
        started.append(Process(drain_timeout_s, linger_s))
        return started[-1]

    yield run
    for process in started:
        process.close()


def test_after_sigterm_accepted_requests_finish_and_new_ones_get_503(start: object) -> None:
    process = start()  # type: ignore[operator]
    accepted = [process.post(f"job {i}") for i in range(8)]
    process.wait_accepted(8)
    process.signal(signal.SIGTERM)
    process.wait_log("SIGTERM: draining")
    assert process.get("/v2/health/ready").status_code == 503
    assert process.get("/v2/models/echo/ready").status_code == 503
    assert process.get("/v2/health/live").status_code == 200
    assert process.get("/metrics").status_code == 200
    late = process.post("late").result(PATIENCE_S)
    assert late.status_code == 503
    assert int(late.headers["retry-after"]) >= 1
    with grpc.insecure_channel(f"127.0.0.1:{process.grpc_port}") as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        assert not stub.ServerReady(pb.ServerReadyRequest()).ready
        request = pb.ModelInferRequest(model_name="echo")
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request, timeout=PATIENCE_S)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert not any(reply.done() for reply in accepted)
    process.control("open")
    replies = [reply.result(PATIENCE_S) for reply in accepted]
    assert [reply.status_code for reply in replies] == [200] * 8
    echoes = [reply.json()["outputs"][0]["data"] for reply in replies]
    assert echoes == [[f"job {i}"] for i in range(8)]
    assert process.wait() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", process.port), timeout=PATIENCE_S)


def test_a_lingering_server_answers_with_connection_close(start: object) -> None:
    process = start(linger_s=PATIENCE_S)  # type: ignore[operator]
    process.control("open")
    url = f"http://127.0.0.1:{process.port}/v2/models/echo"
    with httpx.Client(timeout=PATIENCE_S) as http:
        before = http.post(f"{url}/infer", json=infer_body("before"))
        assert "connection" not in before.headers
        process.signal(signal.SIGTERM)
        process.wait_log("serving requests that still come")
        late = http.post(f"{url}/infer", json=infer_body("late"))
        assert (late.status_code, late.headers["connection"]) == (200, "close")
        ready = http.get(f"{url}/ready")
        assert (ready.status_code, ready.headers["connection"]) == (503, "close")
    process.signal(signal.SIGTERM)  # ends at once
    assert process.wait() == 128 + signal.SIGTERM


def test_a_lingering_server_finishes_grpc_calls_and_exits(start: object) -> None:
    process = start(linger_s=0.05)  # type: ignore[operator]
    with grpc.insecure_channel(f"127.0.0.1:{process.grpc_port}") as channel:
        tensor = pb.ModelInferRequest.InferInputTensor(name="prompt", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(b"held")
        request = pb.ModelInferRequest(model_name="echo", inputs=[tensor])
        running = pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer.future(
            request, timeout=PATIENCE_S
        )
        process.wait_accepted(1)
        process.signal(signal.SIGTERM)
        process.wait_log("draining 1 requests")
        late = process.post("late").result(PATIENCE_S)
        assert (late.status_code, late.headers["connection"]) == (503, "close")
        process.control("open")
        running.result(PATIENCE_S)
    assert process.wait() == 0


def test_sigint_does_not_linger(start: object) -> None:
    process = start(linger_s=PATIENCE_S)  # type: ignore[operator]
    process.signal(signal.SIGINT)
    process.wait_log("draining 0 requests")
    assert process.wait() == 0


def test_after_the_drain_timeout_the_remaining_requests_get_503() -> None:
    engine = ScriptedEngine(slots=1)
    settings = small_settings(server={"drain_timeout_s": 0.05})
    with held(engine, settings) as (running, model), Asking(running) as asking:
        accepted = [asking.post("running"), asking.post("waiting")]
        model.wait_submitted(2)
        running.server.stop()
        replies = [reply.result(PATIENCE_S) for reply in accepted]
        assert [reply.status_code for reply in replies] == [503, 503]
        engine.open()  # the engine thread was in a step, which cannot be interrupted
        assert running.join() == 0


def test_a_second_signal_ends_the_process_at_once(start: object) -> None:
    process = start()  # type: ignore[operator]
    process.post("stuck")
    process.wait_accepted(1)
    process.signal(signal.SIGTERM)
    process.wait_log("SIGTERM: draining")
    process.signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM


def test_an_idle_server_exits_with_keep_alive_connections_open() -> None:
    with serving(echo()) as running, running.client() as http:
        assert http.get("/v2/health/ready").status_code == 200
        assert running.stop() == 0


def test_a_port_in_use_is_reported_before_a_model_is_loaded() -> None:
    engine = ScriptedEngine()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for own, purpose, variable in (
            ({"port": port}, "HTTP", "PORT"),
            ({"grpc_port": port}, "gRPC", "GRPC_PORT"),
            ({"health_port": port}, "health", "PREDICTORS_SERVER_HEALTH_PORT"),
        ):
            settings = small_settings(server=own)
            server = PredictorServer([TaskPredictor("echo", engine, settings)], settings)
            with pytest.raises(InvalidSetting) as refused:
                server.run()
            assert refused.value.message == (
                f"can't listen on 127.0.0.1:{port} ({purpose}): Address already in use by another "
                f"process; set {variable} to another port, or to 0 for a free one"
            )
    assert engine.calls == []
