"""The verb `activator`: its flags, and the process in a pod that wakes a Deployment by the scale
API, answers probes and scrapes, and drains at SIGTERM.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from predictors.activator.command import check_target, read_address
from predictors.errors import InvalidRequest
from predictors.settings import ActivatorSettings, InvalidSetting
from tests.activator.scripted import PATIENCE_S, Model
from tests.cluster.apiserver import (
    NAMESPACE,
    State,
    api_server,
    environment,
    fresh_state,
    mounted,
)

HERE = Path(__file__).parent
SCALE = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/flux-predictor/scale"


def asleep() -> State:
    """A cluster whose one Deployment has no replicas."""
    state = fresh_state()
    state.objects[SCALE] = {
        "kind": "Scale",
        "metadata": {"name": "flux-predictor", "namespace": NAMESPACE, "resourceVersion": "7"},
        "spec": {"replicas": 0},
    }
    return state


class Process:
    """A running activator and its ports."""

    def __init__(self, running: subprocess.Popen[str]) -> None:
        self.running = running
        assert running.stdout is not None
        line = running.stdout.readline()
        assert line, running.communicate()[1]
        self.http, self.grpc, self.health, self.metrics = json.loads(line)

    def get(self, port: int, path: str) -> httpx.Response:
        url = f"http://127.0.0.1:{port}{path}"
        return httpx.get(url, timeout=PATIENCE_S, trust_env=False)

    def wait_logged(self, words: str) -> None:
        assert self.running.stderr is not None
        assert any(words in line for line in self.running.stderr), f"never logged: {words}"

    def post(self) -> httpx.Response:
        url = f"http://127.0.0.1:{self.http}/v2/models/flux/infer"
        return httpx.post(url, content=b"{}", timeout=PATIENCE_S, trust_env=False)


@contextmanager
def process(folder: Path, api_port: int, upstream: int, **env: str) -> Iterator[Process]:
    free = {f"PREDICTORS_SERVER_{kind}PORT": "0" for kind in ("", "GRPC_", "HEALTH_", "METRICS_")}
    with subprocess.Popen(
        [
            sys.executable, str(HERE / "activate_in_pod.py"), str(folder), "activator",
            "--model", "flux", "--deployment", "flux-predictor",
            "--upstream", f"http://127.0.0.1:{upstream}", "--grpc-upstream", "127.0.0.1:1",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=HERE.parents[1],
        env={
            "PYTHONPATH": str(HERE.parents[1]), "PATH": "/usr/bin:/bin",
            **environment(api_port), **free, **env,
        },
    ) as running:  # fmt: skip
        try:
            yield Process(running)
        finally:
            running.kill()


@pytest.fixture
def model() -> Iterator[Model]:
    found = Model()
    yield found
    found.close()


def test_a_pod_wakes_its_deployment_answers_and_drains_at_sigterm(
    tmp_path: Path, model: Model
) -> None:
    folder, state = mounted(tmp_path / "account"), asleep()
    with (
        api_server(folder, state) as api_port,
        process(folder, api_port, model.port) as pod,
        ThreadPoolExecutor() as pool,
    ):
        assert pod.get(pod.health, "/v2/health/ready").json() == {"ready": True}
        assert pod.get(pod.health, "/v2/health/live").status_code == 200
        assert pod.get(pod.health, "/v2/models/flux").status_code == 404
        assert state.requests == []

        held = pool.submit(pod.post)
        # the second look at the scale comes after the change was answered and counted
        state.wait_for(lambda: len(state.asked("GET", SCALE)) == 2)
        (change,) = state.asked("PATCH", SCALE)
        assert change == {"metadata": {"resourceVersion": "7"}, "spec": {"replicas": 1}}
        scraped = pod.get(pod.metrics, "/metrics").text
        assert 'predictors_activator_requests_in_progress{model="flux"} 1.0' in scraped
        assert 'predictors_activator_wakes_total{model="flux"} 1.0' in scraped

        pod.running.send_signal(signal.SIGTERM)
        model.start()
        assert held.result(PATIENCE_S).status_code == 200
        assert pod.running.wait(PATIENCE_S) == 0
    assert {request.path for request in state.requests} == {SCALE}


def test_at_sigterm_readiness_goes_first_and_requests_are_still_taken_for_a_while(
    tmp_path: Path, model: Model
) -> None:
    folder, state = mounted(tmp_path / "account"), asleep()
    model.start()
    lingers = {"PREDICTORS_SERVER_LINGER_S": str(PATIENCE_S)}
    with (
        api_server(folder, state) as api_port,
        process(folder, api_port, model.port, **lingers) as pod,
    ):
        assert pod.post().status_code == 200
        pod.running.send_signal(signal.SIGTERM)
        pod.wait_logged("SIGTERM: draining")
        assert pod.get(pod.health, "/v2/health/ready").status_code == 503
        last = pod.post()
        assert (last.status_code, last.headers["connection"]) == (200, "close")
        pod.running.send_signal(signal.SIGTERM)  # a second one does not wait
        assert pod.running.wait(PATIENCE_S) == 128 + signal.SIGTERM


def run(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(HERE / "activate_in_pod.py"), str(folder), "activator", *words],
        capture_output=True, text=True, timeout=PATIENCE_S, cwd=HERE.parents[1],
        env={"PYTHONPATH": str(HERE.parents[1]), "PATH": "/usr/bin:/bin", **env},
    )  # fmt: skip


def test_outside_of_a_pod_it_says_what_is_missing(tmp_path: Path) -> None:
    words = ("--model", "flux", "--deployment", "flux-predictor", "--upstream", "http://flux")
    done = run(tmp_path, *words)
    assert done.returncode == 2
    assert "the Kubernetes API is needed, but there is no ServiceAccount token" in done.stderr
    assert "Traceback" not in done.stderr
    wrong = run(tmp_path, *words[:3], "Not/A/Name", *words[4:])
    assert wrong.returncode == 2
    assert "is no name of a Deployment" in wrong.stderr


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://flux-predictor.vision.svc", ("flux-predictor.vision.svc", 80)),
        ("http://10.0.0.1:8080/", ("10.0.0.1", 8080)),
        ("http://[::1]:8080", ("::1", 8080)),
    ],
)
def test_an_address_is_a_host_and_a_port(url: str, found: tuple[str, int]) -> None:
    assert read_address(url) == found


@pytest.mark.parametrize(
    "url",
    ["https://flux", "flux:80", "http://", "http://a b", "http://a/v1", "http://a:99999",
     "http://u:p@a", "http://a?b", "http://[::1", "http://a\r\nx: y", "http://a:0", "http://:p@a",
     "http://a//", "http://a:", "http://::1", "http://a\n"],
)  # fmt: skip
def test_another_address_is_refused_with_the_form_that_is_taken(url: str) -> None:
    with pytest.raises(InvalidRequest, match="--upstream takes http://HOST"):
        read_address(url)


def test_a_grpc_target_is_a_host_with_a_port_or_nothing() -> None:
    assert check_target("") == ""
    assert check_target("flux.svc:8081") == "flux.svc:8081"
    assert check_target("[::1]:8081") == "[::1]:8081"
    for wrong in ("flux", "flux:x", "flux:0", "unix:/a", "dns:///a:1", ":1", "flux:70000",
                  "::1:8081", "[flux]:8081", "[[::1]]:8081", "[::1]"):  # fmt: skip
        with pytest.raises(InvalidRequest, match="--grpc-upstream takes HOST:PORT"):
            check_target(wrong)


@pytest.mark.parametrize("bounds", [{"max_held": 0}, {"max_wait_s": 0.0}, {"probe_s": 0.0}])
def test_bounds_that_would_hold_nothing_are_refused(bounds: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting, match="PREDICTORS_ACTIVATOR_"):
        ActivatorSettings(**bounds)
