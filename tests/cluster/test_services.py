"""The verb `status` against an API server over HTTPS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from predictors.__main__ import main
from predictors.cli.outcomes import FAILED, NO_SERVER, REFUSED
from tests.cluster.apiserver import NAMESPACE, TOKEN, State

LABELS = "app.kubernetes.io/part-of=vision-predictors"
OWNER = "serving.kserve.io/inferenceservice"
ROOT = f"/apis/serving.kserve.io/v1beta1/namespaces/{NAMESPACE}/inferenceservices?"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
SERVICES = ROOT + urlencode({"labelSelector": LABELS})


def service(name: str, *, ready: bool) -> dict[str, Any]:
    conditions = [{"type": "PredictorReady", "status": str(ready), "reason": "MinimumReplicas"}]
    states = {"activeModelState": "Loaded" if ready else "", "targetModelState": "Pending"}
    status = {
        "conditions": [*conditions, {"type": "Ready", "status": str(ready)}],
        "modelStatus": {"states": states},
        "url": f"http://{name}.example",
    }
    return {"metadata": {"name": name}, "status": status}


def pod(name: str, owner: str, warm_up: str, restarts: int) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "labels": {OWNER: owner},
            "annotations": {"predictors.vision/warm-up": warm_up},
        },
        "spec": {"containers": [{"ports": [{"name": "metrics", "containerPort": 9090}]}]},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True" if warm_up == "ready" else "False"}],
            "containerStatuses": [{"restartCount": restarts}, {"restartCount": None}],
        },
    }


@pytest.fixture
def kubeconfig(folder: Path, port: int) -> Path:
    """A kubeconfig for the API server of the test, in JSON, which is YAML."""
    return written(folder, port)


def written(folder: Path, port: int) -> Path:
    cluster = {
        "server": f"https://127.0.0.1:{port}",
        "certificate-authority": str(folder / "ca.crt"),
    }
    context = {"cluster": "c", "user": "u", "namespace": NAMESPACE}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": TOKEN}}],
        "contexts": [{"name": "x", "context": context}],
        "current-context": "x",
    }
    file = folder / "kubeconfig"
    file.write_text(json.dumps(content))
    return file


def served(state: State, services: list[Any], pods: list[Any]) -> None:
    state.objects[SERVICES] = {"items": services}
    state.objects[f"{PODS}?{urlencode({'labelSelector': OWNER})}"] = {"items": pods}


def test_a_service_is_shown_with_warm_up_and_restarts_of_its_pods(
    kubeconfig: Path, state: State, capsys: pytest.CaptureFixture[str]
) -> None:
    pods = [pod("a-1", "flux", "ready", 1), pod("a-2", "flux", "3/8 1024x1024", 2)]
    served(state, [service("qwen", ready=True), service("flux", ready=False)], pods)
    assert main(["status", "--kubeconfig", str(kubeconfig), "--json"]) == FAILED
    report = json.loads(capsys.readouterr().out)
    flux, qwen = report["services"]
    assert report["namespace"] == NAMESPACE
    assert (flux["name"], flux["is_ready"], flux["phase"]) == ("flux", False, "Pending")
    assert flux["reason"] == "MinimumReplicas"
    assert [each["restarts"] for each in flux["pods"]] == [1, 2]
    assert flux["pods"][1]["warm_up"] == "3/8 1024x1024"
    assert (qwen["is_ready"], qwen["phase"], qwen["pods"]) == (True, "Loaded", [])
    assert main(["status", "--kubeconfig", str(kubeconfig)]) == FAILED
    head, row, *_ = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["NAME", "READY", "PHASE", "WARM-UP"]
    assert row.split()[:5] == ["flux", "no", "Pending", "3/8", "1024x1024"]


def test_the_queue_comes_through_the_proxy_where_it_can_be_reached(
    kubeconfig: Path, state: State, capsys: pytest.CaptureFixture[str]
) -> None:
    served(state, [service("flux", ready=True)], [pod("a-1", "flux", "ready", 0)])
    # the API server of the test answers JSON; a text with escaped line ends would not be metrics
    state.texts[f"{PODS}/a-1:9090/proxy/metrics"] = (
        "# HELP predictors_requests_waiting Jobs.\n"
        'predictors_requests_waiting{model="flux"} 3.0\n'
        'predictors_requests_waiting{model="b"} 1.0\n'
    )
    assert main(["status", "--kubeconfig", str(kubeconfig), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["services"][0]["pods"][0]["waiting"] == 4
    del state.texts[f"{PODS}/a-1:9090/proxy/metrics"]
    assert main(["status", "--kubeconfig", str(kubeconfig), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["services"][0]["pods"][0]["waiting"] is None


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (404, FAILED, "is KServe installed?"),
        (403, FAILED, "refuses with 403"),
        (401, NO_SERVER, "does not take these credentials"),
        (500, NO_SERVER, "does not answer"),
    ],
)
def test_an_api_server_that_refuses_is_one_sentence(
    status: int,
    code: int,
    said: str,
    kubeconfig: Path,
    state: State,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state.statuses[f"GET {SERVICES}"] = status
    assert main(["status", "--kubeconfig", str(kubeconfig)]) == code
    assert said in capsys.readouterr().err


def test_hostile_objects_are_shown_without_a_traceback(
    kubeconfig: Path, state: State, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = {"metadata": 7, "status": {"conditions": [7, {"type": "Ready"}], "modelStatus": []}}
    served(state, [odd, {"metadata": {"name": "a\x1b[2J"}}, 7], [{"status": {"phase": None}}])
    assert main(["status", "--kubeconfig", str(kubeconfig)]) == FAILED
    assert "\x1b" not in capsys.readouterr().out


def test_a_cluster_that_is_not_there_is_one_sentence(
    folder: Path, dead_port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(folder, dead_port)
    assert main(["status", "--kubeconfig", str(file), "--json"]) == NO_SERVER
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["exit_code"] == NO_SERVER
    assert main(["status", "--kubeconfig", str(file), "-n", "../x"]) == REFUSED
    assert "is no name of a namespace" in capsys.readouterr().err
    assert main(["status", "--kubeconfig", str(file), "--context", "y"]) == REFUSED
    assert main(["status", "--kubeconfig", str(tmp_path / "none")]) == REFUSED
    (tmp_path / "bad").write_text("[1")
    assert main(["status", "--kubeconfig", str(tmp_path / "bad")]) == REFUSED
    assert capsys.readouterr().err.count("no usable kubeconfig") == 3


def test_an_empty_namespace_is_said(
    kubeconfig: Path, state: State, capsys: pytest.CaptureFixture[str]
) -> None:
    served(state, [], [])
    assert main(["status", "--kubeconfig", str(kubeconfig)]) == FAILED
    assert f"no InferenceService of the chart in namespace {NAMESPACE}" in capsys.readouterr().out
