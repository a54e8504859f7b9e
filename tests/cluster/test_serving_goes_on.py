"""A server in a pod from load to SIGTERM: with an API server, without one, and with one that does
not answer.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import httpx
import pytest

from predictors.cli.child import held_ports
from predictors.cluster.reporter import CLOSE_TIMEOUT_S
from tests.cluster.apiserver import PATIENCE_S, State, api_server, environment

SHAPES = Path(__file__).resolve().parents[2] / "checkpoints/shapes-flux"
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "PREDICTORS_CLUSTER_EVENTS": "on",
    "PREDICTORS_CLUSTER_INTERVAL_S": "0",
    "PREDICTORS_CLUSTER_TIMEOUT_S": str(PATIENCE_S),
    "PREDICTORS_FLUX_MAX_SEQUENCE_LENGTH": "32",
    "PREDICTORS_FLUX_DEFAULT_STEPS": "2",
    "PREDICTORS_FLUX_SIZES": "64x64",
    "PREDICTORS_FLUX_DEFAULT_SIZE": "64x64",
    "PREDICTORS_FLUX_SLOTS": "1",
    "PREDICTORS_FLUX_TIERS": "lossless",
    "OMP_NUM_THREADS": "1",
    "PREDICTORS_OVERLOAD_LOOP_LAG_S": "0",  # a busy machine makes the event loop late
}
DRAW = {
    "inputs": [
        {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a large red circle"]}
    ]
}


class Pod:
    """A process of `serve_in_pod` and its log so far. It loads after `go_on`."""

    def __init__(
        self,
        folder: Path,
        ports: Sequence[int],
        environ: Mapping[str, str],
        checkpoint: Path,
        close_timeout_s: float,
    ) -> None:
        self.log: list[str] = []
        self.http_port, grpc_port = ports
        command = [
            sys.executable, "-m", "tests.cluster.serve_in_pod", str(folder), str(close_timeout_s),
            "serve", f"--model=flux={checkpoint}",
            f"--port={self.http_port}", f"--grpc-port={grpc_port}", "--log-format=text",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | SETTINGS | environ,
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.stdin = None  # `communicate` would flush it

    def read_until(self, *words: str) -> None:
        """Read the log until each of `words` was in a line, in any order."""
        assert self.process.stderr is not None
        missing = set(words)
        for line in self.process.stderr:
            self.log.append(line)
            missing -= {word for word in missing if word in line}
            if not missing:
                return
        raise AssertionError(f"ended without logging {missing}: {''.join(self.log)}")

    def get(self, path: str) -> int:
        return httpx.get(f"http://127.0.0.1:{self.http_port}{path}", timeout=PATIENCE_S).status_code

    def draw(self) -> int:
        url = f"http://127.0.0.1:{self.http_port}/v2/models/flux/infer"
        return httpx.post(url, json=DRAW, timeout=PATIENCE_S).status_code

    def end(self) -> None:
        """Send SIGTERM and expect exit code 0."""
        self.process.send_signal(signal.SIGTERM)
        self.wait_ended()

    def wait_ended(self) -> None:
        """Wait for the end and expect exit code 0."""
        _, rest = self.process.communicate(timeout=PATIENCE_S)
        self.log.append(rest)
        assert self.process.returncode == 0, "".join(self.log)


StartPod = Callable[..., Pod]


@pytest.fixture
def start_pod(folder: Path) -> Iterator[StartPod]:
    """Starts a pod that reports to the API server on a port, with time to send its last events. It
    loads at once unless it is `held`."""
    started: list[Pod] = []

    def start(
        port: int,
        checkpoint: Path = SHAPES,
        *,
        held: bool = False,
        close_timeout_s: float = PATIENCE_S,
        **settings: str,
    ) -> Pod:
        environ = environment(port) | settings
        started.append(Pod(folder, ports, environ, checkpoint, close_timeout_s))
        if not held:
            started[-1].go_on()
        return started[-1]

    with held_ports(2) as ports:
        yield start
        for pod in started:
            pod.process.kill()
            pod.process.communicate()


def test_events_and_annotation_show_a_pod_from_load_to_drain(
    port: int, state: State, start_pod: StartPod
) -> None:
    pod = start_pod(port, held=True)
    state.wait_for(lambda: state.annotation == "flux loading")
    pod.go_on()
    pod.read_until("flux is ready")
    state.wait_for(lambda: state.annotation == "ready")
    pod.end()
    for kind in ("Pod", "InferenceService"):
        assert state.reasons(kind) == ["Loading", "WarmingUp", "Ready", "Draining"]
    loading, warming, ready, draining = state.events_about("InferenceService")
    shapes = sum("warming: flux" in line for line in pod.log)
    assert shapes > 0
    assert warming["count"] == shapes + 1
    assert warming["message"].endswith(f"({shapes} of {shapes})")
    assert loading["message"] == "flux is loading"
    assert ready["message"].startswith("flux is ready, after ")
    assert draining["message"] == "finishing 0 requests for at most 300 s"
    texts = [
        body["metadata"]["annotations"]["predictors.vision/warm-up"]
        for body in state.asked("PATCH", "/api/v1/namespaces/models/pods/")
    ]
    assert texts[-1] == "ready"
    assert "flux loading" in texts


def test_a_folder_that_is_refused_is_an_event(
    port: int, state: State, start_pod: StartPod, tmp_path: Path
) -> None:
    broken = shutil.copytree(SHAPES, tmp_path / "broken")
    for weights in broken.rglob("*.safetensors"):
        weights.write_bytes(b"")
    pod = start_pod(port, broken)
    pod.process.communicate(timeout=PATIENCE_S)
    assert pod.process.returncode == 2
    failed = next(e for e in state.events_about("Pod") if e["reason"] == "EngineFailed")
    assert failed["type"] == "Warning"
    assert failed["message"].startswith("the start was refused: transformer/")
    assert state.annotation == "flux failed"
    assert state.reasons("InferenceService") == state.reasons()


def test_a_pod_serves_without_an_api_server(dead_port: int, start_pod: StartPod) -> None:
    pod = start_pod(dead_port, close_timeout_s=CLOSE_TIMEOUT_S)
    serves_and_ends(pod, "flux is ready", "Kubernetes")
    logged = [line for line in "".join(pod.log).splitlines() if "Kubernetes" in line]
    assert len(logged) == 1, logged


@pytest.mark.parametrize("timeout_s", ["0.5", "3600"])
def test_a_pod_serves_while_the_api_server_does_not_answer(
    timeout_s: str, start_pod: StartPod
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)
        own = {"PREDICTORS_CLUSTER_TIMEOUT_S": timeout_s}
        pod = start_pod(listener.getsockname()[1], close_timeout_s=CLOSE_TIMEOUT_S, **own)
        with listener.accept()[0]:  # and never answer
            if timeout_s == "3600":
                serves_and_ends(pod, "flux is ready")  # while the reporter's call waits
                return
            serves_and_ends(pod, "flux is ready", "Kubernetes")
    logged = [line for line in "".join(pod.log).splitlines() if "Kubernetes" in line]
    assert len(logged) == 1, logged


def serves_and_ends(pod: Pod, *words: str) -> None:
    """Serve three pictures after each of `words` was logged, then end."""
    pod.read_until(*words)
    assert pod.get("/v2/models/flux/ready") == 200
    assert [pod.draw() for _ in range(3)] == [200, 200, 200]
    pod.end()


def test_events_of_an_outage_are_sent_while_pictures_are_drawn(
    dead_port: int, folder: Path, state: State, start_pod: StartPod
) -> None:
    with api_server(folder, state, dead_port) as port:
        pod = start_pod(port)
        state.wait_for(lambda: "Loading" in state.reasons())
    pod.read_until("flux is ready")
    assert pod.draw() == 200
    with api_server(folder, state, port):
        state.wait_for(lambda: "Ready" in state.reasons("InferenceService"))
        assert pod.draw() == 200
        pod.end()
    assert state.reasons() == ["Loading", "WarmingUp", "Ready", "Draining"]


def test_sigterm_while_loading_ends_the_process_in_order(
    port: int, state: State, start_pod: StartPod
) -> None:
    pod = start_pod(port, held=True)
    pod.read_until("flux is loading")
    assert pod.get("/v2/models/flux/ready") == 503
    pod.process.send_signal(signal.SIGTERM)
    state.wait_for(lambda: "Draining" in state.reasons())
    pod.wait_ended()
    assert state.reasons()[-1] == "Draining", (state.reasons(), "".join(pod.log))
    assert "Ready" not in state.reasons()


def test_events_on_without_a_service_account_is_refused(folder: Path, start_pod: StartPod) -> None:
    (folder / "token").unlink()
    pod = start_pod(1)
    _, error = pod.process.communicate(timeout=PATIENCE_S)
    assert pod.process.returncode == 2
    assert error == (
        "error: PREDICTORS_CLUSTER_EVENTS is on, but there is no ServiceAccount token and ca.crt "
        f"in {folder}\n"
    )
