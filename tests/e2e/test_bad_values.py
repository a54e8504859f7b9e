"""Values that can't work are refused before anything is made, and say which key it was; what passes
Helm is looked at once more by KServe's own webhooks.

The many kinds of refusal are tests of the chart (tests/deploy); here a real `helm install` is
refused by each kind of rule, and a real API server by its webhooks.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.helm import Release
from tests.e2e.kube import CommandFailed, Kube
from tests.e2e.one_model import installed, values

REFUSED = {
    "an unknown key": ({"replicaCount": 2}, "replicaCount"),
    "an unknown key of a model": ({"gpus": 1}, "gpus"),
    "an unknown setting": ({"settings": {"flux": {"slotz": 2}}}, "slotz"),
    "a wrong type": ({"replicas": {"min": "two"}}, "models.flux.replicas.min"),
    "a setting's wrong type": ({"settings": {"flux": {"slots": "many"}}}, "slots"),
    "no zero without a wake query": (
        {"replicas": {"min": 0, "max": 2}, "autoscaling": {"enabled": True}},
        "wakeQuery",
    ),
    "a drain shorter than a job": ({"timeoutSeconds": 90}, "models.flux.drain.graceSeconds"),
    "a surge without a spare GPU": ({"gpu": {"count": 1}}, "models.flux.rollout"),
    "two GPUs for one process": ({"gpu": {"count": 2}}, "models.flux.gpu.count"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_helm_refuses_by_the_keys_name_and_makes_nothing(kube: Kube, case: str) -> None:
    wrong, key = REFUSED[case]
    given = values(model=wrong)
    if "replicaCount" in wrong:
        given = {**values(), **wrong}
    release = Release("refused", kube.namespace)
    with pytest.raises(CommandFailed) as refusal:
        release.install([], given)
    message = str(refusal.value)
    assert key in message, message
    assert kube("get", "isvc,servingruntime,deployment,sa", "-o", "name").split() == [
        "serviceaccount/default"
    ]
    assert json.loads(kube("get", "secrets", "-o", "json"))["items"] == [], "no release is recorded"


def service(name: str, canary: Any = None, **predictor: Any) -> dict[str, Any]:
    """An InferenceService that names the release's runtime."""
    model = {
        "modelFormat": {"name": "flux"},
        "runtime": "one-predictors-flux",
        "storageUri": "pvc://checkpoints/shapes-flux",
    }
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        # the chart says the mode as well: KServe's validator takes nothing but the literal
        "metadata": {"name": name, "annotations": {"serving.kserve.io/deploymentMode": "Standard"}},
        "spec": {
            "predictor": {"model": {**model, **predictor.pop("model", {})}, **predictor},
            "canary": canary or [],
        },
    }


def canaries(*names: str) -> list[dict[str, Any]]:
    """Further revisions without any traffic."""
    model = {"modelFormat": {"name": "flux"}, "storageUri": "pvc://checkpoints/shapes-flux"}
    return [{"trafficPercent": 0, "predictor": {"name": name, "model": model}} for name in names]


WEBHOOKS = {
    "an environment that KServe forbids": (
        service("wrong", model={"env": [{"name": "PYTHONPATH", "value": "/x"}]}),
        "PYTHONPATH",
    ),
    "more replicas at least than at most": (
        service("wrong", minReplicas=3, maxReplicas=1),
        "axReplicas",
    ),
    "two canaries of one name": (
        service("wrong", canary=canaries("next", "next")),
        '"next" is duplicated',
    ),
    "a name that is no label": (service("Not_A_Name"), "Not_A_Name"),
}


@pytest.mark.parametrize("case", WEBHOOKS)
def test_kserve_refuses_what_is_applied_by_hand(kube: Kube, case: str) -> None:
    wrong, named = WEBHOOKS[case]
    with pytest.raises(CommandFailed) as refusal:
        kube("apply", "-f", "-", stdin=json.dumps(wrong))
    assert "denied the request" in str(refusal.value) or "is invalid" in str(refusal.value)
    assert named in str(refusal.value), str(refusal.value)


def test_a_second_release_needs_another_rank_since_both_claim_the_same_formats(
    kube: Kube,
) -> None:
    nothing = {**values(), "models": {}}
    with installed(kube, nothing, name="one"):
        second = Release("two", kube.namespace)
        try:
            with pytest.raises(CommandFailed, match="same priority assigned for the model format"):
                second.install([], nothing)
            second.upgrade([], {**nothing, "runtimes": {"priority": 2}})
            names = kube("get", "servingruntimes", "-o", "name").split()
            assert len(names) == 4, names
        finally:
            second.uninstall(wait=False)
