"""Canaries: further revisions with their own pods and weights, and one that is broken never counts
as ready. KServe uses the Gateway API while this file runs; no gateway carries traffic here, so the
test says in its place that the routes are accepted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e import asks
from tests.e2e.image.places import BROKEN
from tests.e2e.kube import Kube, Object, condition, run, until
from tests.e2e.one_model import MODEL, installed, values

CONFIG = ("-n", "kserve", "configmap", "inferenceservice-config")
PARENT = {"name": "kserve-ingress-gateway", "namespace": "kserve"}
OURS = f"one-predictors-{MODEL}-canary"
PORTS = (8081, 80)
"""Of gRPC, whose rule is the first, and of HTTP."""
WEIGHTS = {f"{MODEL}-predictor": 70, f"{MODEL}-next-predictor": 20, f"{MODEL}-bad-predictor": 10}


@pytest.fixture
def gateway_api(cluster_up: None) -> Iterator[None]:
    """KServe makes HTTPRoutes instead of nothing; it reads its config map at each look."""
    before = run("kubectl", "get", *CONFIG, "-o", "jsonpath={.data.ingress}")
    after = {**json.loads(before), "enableGatewayApi": True, "disableIngressCreation": False}

    def write(text: str) -> None:
        patch = json.dumps({"data": {"ingress": text}})
        run("kubectl", "patch", *CONFIG, "--type=merge", "-p", patch)

    write(json.dumps(after))
    yield
    write(before)


def accept(kube: Kube) -> list[Object]:
    """Say in the status of every route what a gateway would; the routes."""
    found = kube.list("httproutes")
    for route in found:
        name, generation = route["metadata"]["name"], route["metadata"]["generation"]
        told = [
            {
                "type": kind,
                "status": "True",
                "reason": kind,
                "message": "said by the test",
                "observedGeneration": generation,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
            for kind in ("Accepted", "ResolvedRefs")
        ]
        parents = [
            {"parentRef": parent, "controllerName": "e2e.example.com/test", "conditions": told}
            for parent in route["spec"]["parentRefs"]
        ]
        patch = json.dumps({"status": {"parents": parents}})
        kube("patch", "httproute", name, "--subresource=status", "--type=merge", "-p", patch)
    # KServe watches routes only if its config map said so when it started: make it look, by what it
    # owns, since an annotation of the InferenceService would go to the pods and roll them
    look = f"e2e.example.com/look={time.time_ns()}"
    kube("annotate", "deployment", f"{MODEL}-predictor", look, "--overwrite")
    return found


def statuses(kube: Kube) -> dict[str, Object]:
    """The InferenceService's status of its canaries, by name."""
    found = kube.get("isvc", MODEL).get("status", {}).get("canaryStatuses", [])
    return {each["name"]: each for each in found}


def canaried() -> object:
    """One stable pod, one sound canary and a broken one."""
    repository, _, tag = BROKEN.rpartition(":")
    broken = {"repository": repository, "tag": tag}
    canary = [
        {"name": "next", "trafficPercent": 20, "replicas": 1, "settings": {"flux": {"slots": 2}}},
        {"name": "bad", "trafficPercent": 10, "replicas": 1, "image": broken},
    ]
    given = values(model={"replicas": {"min": 3}, "canary": canary})
    hosts = ["{{ .Name }}.{{ .Namespace }}.canary.example.com"]
    return {**given, "gateway": {"enabled": True, "parentRefs": [PARENT], "hostnames": hosts}}


def test_revisions_have_the_weights_that_were_set_and_a_broken_one_never_gets_ready(
    kube: Kube, gateway_api: None
) -> None:
    with installed(kube, canaried()):
        kube.wait(f"isvc/{MODEL}", "create", 20)
        until("the sound canary is ready", lambda: statuses(kube).get("next", {}).get("ready"), 120)
        until("the stable one is ready", lambda: kube.get("deployment", f"{MODEL}-predictor")[
            "status"].get("readyReplicas") == 1, 120)  # fmt: skip

        until("KServe has made its routes", lambda: len(kube.list("httproutes")) >= 2, 60)
        until("accepted routes make it ready", lambda: accept(kube) and condition(
            kube.get("isvc", MODEL), "IngressReady") == "True", 60)  # fmt: skip
        rules = kube.get("httproute", OURS)["spec"]["rules"]
        for rule, port in zip(rules, PORTS, strict=True):
            backends = {b["name"]: b["weight"] for b in rule["backendRefs"]}
            assert (backends, {b["port"] for b in rule["backendRefs"]}) == (WEIGHTS, {port})
        for backend in WEIGHTS:
            assert {p["port"] for p in kube.get("service", backend)["spec"]["ports"]} >= set(PORTS)

        told = statuses(kube)
        assert {name: each["trafficPercent"] for name, each in told.items()} == {
            "next": 20,
            "bad": 10,
        }
        assert not told["bad"].get("ready")
        assert condition(kube.get("isvc", MODEL), "CanaryPredictorReady") == "False"
        (spoiled,) = kube.list("pods", f"app=isvc.{MODEL}-bad-predictor")
        assert condition(spoiled, "Ready") == "False"
        for revision in (f"{MODEL}-predictor", f"{MODEL}-next-predictor"):
            address = kube.get("service", revision)["spec"]["clusterIP"]
            with httpx.Client(base_url=f"http://{address}", timeout=60, trust_env=False) as http:
                reply = http.post(f"/v2/models/{MODEL}/infer", json=asks.picture_body())
            asks.check_png(asks.png_of(asks.checked(reply)), 64, 64)
