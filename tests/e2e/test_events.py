"""An operator sees a start with kubectl alone, and no request waits for the API server: while it is
stopped, requests are answered.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import asks
from tests.e2e.helm import Release
from tests.e2e.kube import Kube, name_of, run, until
from tests.e2e.one_model import MODEL, events_of, installed, values
from tests.e2e.traffic import Traffic, over_http

ANNOTATION = "predictors.vision/warm-up"
COLUMNS = r"POD:.metadata.name,WARM-UP:.metadata.annotations.predictors\.vision/warm-up"
OUTAGE_S = 5.0


@pytest.fixture(scope="module")
def release(kube: Kube) -> Iterator[Release]:
    """One model, served."""
    with installed(kube, values()) as release:
        kube.wait_served(MODEL)
        yield release


def reasons(kube: Kube, kind: str, name: str) -> list[str]:
    """The reasons of our own events about one object, in order."""
    ours = [
        event
        for event in events_of(kube, kind, name)
        if "vision-predictors"
        in (event.get("reportingComponent"), event["source"].get("component"))
    ]
    return [str(event["reason"]) for event in ours]


def component(verb: str, name: str) -> None:
    """Stop or start a part of the cluster that tests/e2e/cluster runs."""
    run(sys.executable, "-m", "tests.e2e.cluster", "component", verb, name, timeout_s=90)


def test_pod_and_inference_service_have_the_events_of_a_start(kube: Kube, release: Release) -> None:
    (pod,) = kube.ready_pods(MODEL, 1)
    for kind, name in (("Pod", name_of(pod)), ("InferenceService", MODEL)):
        told = until(
            f"{kind} {name} tells that it is ready",
            lambda kind=kind, name=name: (
                found if "Ready" in (found := reasons(kube, kind, name)) else None
            ),
            30,
        )
        assert {"Loading", "WarmingUp", "Ready"} <= set(told), told


def test_kubectl_describe_and_custom_columns_show_it(kube: Kube, release: Release) -> None:
    (pod,) = kube.ready_pods(MODEL, 1)
    name = name_of(pod)
    until("the story is told", lambda: "Ready" in reasons(kube, "InferenceService", MODEL), 30)
    for shown in (kube("describe", "isvc", MODEL), kube("describe", "pod", name)):
        events = shown.partition("\nEvents:")[2]
        for reason in ("Loading", "WarmingUp", "Ready"):
            assert re.search(rf"Normal\s+{reason}\s.*vision-predictors", events), events
    until("the warm-up is over", lambda: kube.get("pod", name)["metadata"]["annotations"].get(
        ANNOTATION) == "ready", 30)  # fmt: skip
    table = kube("get", "pods", "-o", f"custom-columns={COLUMNS}").splitlines()
    assert table[0].split() == ["POD", "WARM-UP"]
    assert [name, "ready"] in [row.split() for row in table[1:]]


def test_a_pod_that_leaves_says_so(kube: Kube, release: Release) -> None:
    (pod,) = kube.ready_pods(MODEL, 1)
    kube("delete", "pod", name_of(pod), "--wait=true")
    until(
        "the pod has said that it drains",
        lambda: "Draining" in reasons(kube, "Pod", name_of(pod)),
        20,
    )
    kube.ready_pods(MODEL, 1)


@pytest.mark.supervisor
def test_serving_goes_on_while_the_api_server_is_stopped(
    kube: Kube, release: Release, kept: Path
) -> None:
    (pod,) = kube.ready_pods(MODEL, 1)
    url = f"http://{pod['status']['podIP']}:8080"
    dial = over_http(url, asks.draw)
    with Traffic(dial, clients=2, saved=kept / "no-api-server.traffic.jsonl") as traffic:
        traffic.wait_answered(5)
        with traffic.around("no API server") as window:
            component("stop", "kube-apiserver")
            try:
                began = time.monotonic()
                with pytest.raises(AssertionError):
                    run("kubectl", "--request-timeout=2s", "get", "--raw", "/readyz")
                while time.monotonic() - began < OUTAGE_S:
                    traffic.wait_answered(5)
            finally:
                component("start", "kube-apiserver")
            until("the API server is back", lambda: run("kubectl", "get", "--raw", "/readyz"), 60)
            traffic.wait_answered(5)
        window.assert_none_failed(at_least=20)
        print(window)
    (after,) = kube.ready_pods(MODEL, 1)
    assert name_of(after) == name_of(pod), "the same pod, not restarted"
    assert sum(c["restartCount"] for c in after["status"]["containerStatuses"]) == 0
