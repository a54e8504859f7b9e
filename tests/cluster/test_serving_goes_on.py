"""A server in a pod, from load to SIGTERM: with an API server, with none, and with a mute one."""

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
from predictors.cluster.reporter import LAST_WORDS_S
from tests.cluster.apiserver import PATIENCE_S, State, api_server, environment

SHAPES = Path(__file__).resolve().parents[2] / "checkpoints/shapes-flux"
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "PREDICTORS_CLUSTER_EVENTS": "on",
    "PREDICTORS_CLUSTER_INTERVAL_S": "0",
    "PREDICTORS_CLUSTER_TIMEOUT_S": str(PATIENCE_S),
    "PREDICTORS_FLUX_MAX_SEQUENCE_LENGTH": "32",
    "PREDICTORS_FLUX_DEFAULT_STEPS": "2",
    "OMP_NUM_THREADS": "1",
}
DRAW = {
    "inputs": [
        {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a large red circle"]}
    ]
}


class Pod:
    """One process of `serve_in_pod`, and its log so far. It loads once it may `go_on`."""

    def __init__(
        self,
        folder: Path,
        ports: Sequence[int],
        environ: Mapping[str, str],
        checkpoint: Path,
        last_words_s: float,
    ) -> None:
        self.log: list[str] = []
        self.http_port, grpc_port = ports
        command = [
            sys.executable, "-m", "tests.cluster.serve_in_pod", str(folder), str(last_words_s),
            "serve", f"--model=flux={checkpoint}",
            f"--port={self.http_port}", f"--grpc-port={grpc_port}", "--log-format=text",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | SETTINGS | environ,
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def go_on(self) -> None:
        """The model may load."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.stdin = None  # `communicate` would flush it

    def read_until(self, *words: str) -> None:
        """Read the log until each of `words` was in a line, in whatever order."""
        assert self.process.stderr is not None
        missing = set(words)
        for line in self.process.stderr:
            self.log.append(line)
            missing -= {word for word in missing if word in line}
            if not missing:
                return
        raise AssertionError(f"ended without saying {missing}: {''.join(self.log)}")

    def get(self, path: str) -> int:
        """The status of a route."""
        return httpx.get(f"http://127.0.0.1:{self.http_port}{path}", timeout=PATIENCE_S).status_code

    def draw(self) -> int:
        """The status of a picture."""
        url = f"http://127.0.0.1:{self.http_port}/v2/models/flux/infer"
        return httpx.post(url, json=DRAW, timeout=PATIENCE_S).status_code

    def end(self) -> None:
        """SIGTERM, upon which the process ends with exit code 0."""
        self.process.send_signal(signal.SIGTERM)
        self.wait_ended()

    def wait_ended(self) -> None:
        """Return once it has, with exit code 0."""
        _, rest = self.process.communicate(timeout=PATIENCE_S)
        self.log.append(rest)
        assert self.process.returncode == 0, "".join(self.log)


StartPod = Callable[..., Pod]


@pytest.fixture
def start_pod(folder: Path) -> Iterator[StartPod]:
    """Starts one that tells the API server on a port, and has the time for its last words. It
    loads at once unless it is `held`."""
    started: list[Pod] = []

    def start(
        port: int,
        checkpoint: Path = SHAPES,
        *,
        held: bool = False,
        last_words_s: float = PATIENCE_S,
        **settings: str,
    ) -> Pod:
        environ = environment(port) | settings
        started.append(Pod(folder, ports, environ, checkpoint, last_words_s))
        if not held:
            started[-1].go_on()
        return started[-1]

    with held_ports(2) as ports:
        yield start
        for pod in started:
            pod.process.kill()
            pod.process.communicate()


def test_a_pods_life_can_be_read_from_its_events_and_its_annotation(
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


def test_an_engine_that_fails_to_load_is_an_event(
    port: int, state: State, start_pod: StartPod, tmp_path: Path
) -> None:
    broken = shutil.copytree(SHAPES, tmp_path / "broken")
    for weights in broken.rglob("*.safetensors"):
        weights.write_bytes(b"")
    pod = start_pod(port, broken)
    pod.process.communicate(timeout=PATIENCE_S)
    assert pod.process.returncode == 70
    failed = next(e for e in state.events_about("Pod") if e["reason"] == "EngineFailed")
    assert failed["type"] == "Warning"
    assert failed["message"].startswith("flux failed while loading: ")
    assert state.annotation == "flux failed"
    assert state.reasons("InferenceService") == state.reasons()


def test_with_nobody_where_kubernetes_was_a_pod_starts_serves_and_ends_as_ever(
    dead_port: int, start_pod: StartPod
) -> None:
    pod = start_pod(dead_port, last_words_s=LAST_WORDS_S)
    serves_and_ends(pod, "flux is ready", "Kubernetes")
    said = [line for line in "".join(pod.log).splitlines() if "Kubernetes" in line]
    assert len(said) == 1, said


@pytest.mark.parametrize("timeout_s", ["0.5", "3600"])
def test_without_an_answer_from_kubernetes_a_pod_starts_serves_and_ends_as_ever(
    timeout_s: str, start_pod: StartPod
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)
        own = {"PREDICTORS_CLUSTER_TIMEOUT_S": timeout_s}
        pod = start_pod(listener.getsockname()[1], last_words_s=LAST_WORDS_S, **own)
        with listener.accept()[0]:  # and never a word
            if timeout_s == "3600":
                serves_and_ends(pod, "flux is ready")  # though somebody waits for an hour
                return
            serves_and_ends(pod, "flux is ready", "Kubernetes")
    said = [line for line in "".join(pod.log).splitlines() if "Kubernetes" in line]
    assert len(said) == 1, said


def serves_and_ends(pod: Pod, *words: str) -> None:
    """Once each of `words` was in the log."""
    pod.read_until(*words)
    assert pod.get("/v2/models/flux/ready") == 200
    assert [pod.draw() for _ in range(3)] == [200, 200, 200]
    pod.end()


def test_an_api_server_that_stops_and_comes_back_is_told_while_pictures_are_drawn(
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


def test_whoever_insists_on_events_without_a_serviceaccount_is_refused(
    folder: Path, start_pod: StartPod
) -> None:
    (folder / "token").unlink()
    pod = start_pod(1)
    _, error = pod.process.communicate(timeout=PATIENCE_S)
    assert pod.process.returncode == 2
    assert error == (
        "error: PREDICTORS_CLUSTER_EVENTS is on, but there is no ServiceAccount token and ca.crt "
        f"in {folder}\n"
    )
