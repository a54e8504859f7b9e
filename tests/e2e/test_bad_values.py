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
from tests.e2e.one_model import MODEL, installed, values

REFUSED = {
    "an unknown key": ({"replicaCount": 2}, "replicaCount"),
    "an unknown key of a model": ({"gpus": 1}, "gpus"),
    "an unknown setting": ({"settings": {"flux": {"slotz": 2}}}, "slotz"),
    "a wrong type": ({"replicas": {"min": "two"}}, "replicas/min"),
    "a setting's wrong type": ({"settings": {"flux": {"slots": "many"}}}, "slots"),
    "no zero without a wake query": (
        {"replicas": {"min": 0, "max": 2}, "autoscaling": {"enabled": True}},
        "wakeQuery",
    ),
    "a drain shorter than a job": ({"timeoutSeconds": 90}, "models.flux.drain.graceSeconds"),
    "a surge without a spare GPU": ({"gpu": {"count": 1}}, "models.flux.rollout"),
    "two GPUs for one process": ({"gpu": {"count": 2}}, "gpu/count"),
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


def service(name: str, **predictor: Any) -> dict[str, Any]:
    """An InferenceService that names the release's runtime."""
    model = {
        "modelFormat": {"name": "flux"},
        "runtime": "one-predictors-flux",
        "storageUri": "pvc://checkpoints/shapes-flux",
    }
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {"predictor": {"model": {**model, **predictor.pop("model", {})}, **predictor}},
    }


def runtime(name: str, priority: int) -> dict[str, Any]:
    """A ServingRuntime that wants to be chosen for FLUX."""
    formats = [{"name": "flux", "version": "1", "autoSelect": True, "priority": priority}]
    container = {"name": "kserve-container", "image": "localhost/any:1"}
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": name},
        "spec": {
            "supportedModelFormats": [*formats, *formats],
            "protocolVersions": ["v2"],
            "containers": [container],
        },
    }


WEBHOOKS = {
    "an environment that KServe forbids": (
        service("wrong", model={"env": [{"name": "PYTHONPATH", "value": "/x"}]}),
        "PYTHONPATH",
    ),
    "more replicas at least than at most": (
        service("wrong", minReplicas=3, maxReplicas=1),
        "axReplicas",
    ),
    "a storage scheme that nobody knows": (
        service("wrong", model={"storageUri": "floppy://a/b"}),
        "floppy",
    ),
    "a name that is no label": (service("Not_A_Name"), "Not_A_Name"),
    "one format twice at one rank": (runtime("twice", 1), "priority"),
}


@pytest.mark.parametrize("case", WEBHOOKS)
def test_kserve_refuses_what_is_applied_by_hand(kube: Kube, case: str) -> None:
    wrong, named = WEBHOOKS[case]
    with pytest.raises(CommandFailed) as refusal:
        kube("apply", "-f", "-", stdin=json.dumps(wrong))
    assert "denied the request" in str(refusal.value) or "is invalid" in str(refusal.value)
    assert named in str(refusal.value), str(refusal.value)


def test_a_second_release_of_equal_rank_is_refused_when_a_runtime_must_be_chosen(
    kube: Kube,
) -> None:
    """KServe's own rule, told in the manual (`runtimes.priority`): both claim the same format."""
    nothing = {**values(), "models": {}}
    with installed(kube, nothing, name="one"):
        second = Release("two", kube.namespace)
        try:
            second.install([], {**nothing, "runtimes": {"priority": 2}})
            names = kube("get", "servingruntimes", "-o", "name").split()
            assert len(names) == 4, names
        finally:
            second.uninstall()
    assert MODEL not in kube("get", "servingruntimes", "-o", "name")
