"""GPUs are asked for and waited for as Kubernetes' scheduler sees them. The node's are made up: its
status says that it has one, and the image computes on the CPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.e2e.kube import Kube, Object, condition, name_of, run, until
from tests.e2e.one_model import MODEL, installed, values

GPU = "nvidia.com/gpu"
AT = "/status/capacity/nvidia.com~1gpu"


def patch_node(node: str, *changes: Object) -> None:
    """Change the node's status, as a device plugin would through the kubelet."""
    words = ("patch", "node", node, "--subresource=status", "--type=json", "-p")
    run("kubectl", *words, json.dumps(changes))


@pytest.fixture
def one_gpu(cluster_up: None) -> Iterator[str]:
    """The first node, with one GPU while the test runs."""
    node = run("kubectl", "get", "nodes", "-o", "jsonpath={.items[0].metadata.name}")
    patch_node(node, {"op": "add", "path": AT, "value": "1"})
    told = ("get", "node", node, "-o", r"jsonpath={.status.allocatable.nvidia\.com/gpu}")
    until("the node offers one GPU", lambda: run("kubectl", *told) == "1", 30)
    yield node
    patch_node(node, {"op": "remove", "path": AT})


def gpu_values(rollout: str, slots: int) -> object:
    """One GPU per pod, computed on the CPU; `slots` makes another version of the pod."""
    settings = {"compute": {"device": "cpu"}, "flux": {"slots": slots}}
    # `spare` tells the chart that there is another GPU, which on this node is not so
    gpu = {"count": 1, "spare": 1 if rollout == "surge" else 0}
    return values(rollout=rollout, gpu=gpu, settings=settings)


def unscheduled(kube: Kube) -> Object | None:
    """A pod that the scheduler found no place for, and why."""
    for pod in kube.pods(MODEL):
        for each in pod["status"].get("conditions", []):
            if each["type"] == "PodScheduled" and each.get("reason") == "Unschedulable":
                return {"name": name_of(pod), "message": each["message"]}
    return None


def test_a_rollout_in_place_completes_on_the_only_gpu_where_a_surge_waits(
    kube: Kube, one_gpu: str
) -> None:
    with installed(kube, gpu_values("in-place", slots=2)) as release:
        kube.wait_served(MODEL)
        (first,) = kube.ready_pods(MODEL, 1)
        (container,) = first["spec"]["containers"]
        assert container["resources"]["limits"][GPU] == "1"
        assert container["resources"]["requests"][GPU] == "1"
        assert {"key": GPU, "operator": "Exists", "effect": "NoSchedule"} in first["spec"][
            "tolerations"
        ]

        release.upgrade([], gpu_values("surge", slots=3))
        stuck = until("the second pod waits for a GPU", lambda: unscheduled(kube), 60)
        assert f"Insufficient {GPU}" in stuck["message"]
        assert condition(kube.get("pod", name_of(first)), "Ready") == "True"

        release.upgrade([], gpu_values("in-place", slots=3))
        (second,) = kube.ready_pods(MODEL, 1)
        assert name_of(second) != name_of(first)
        assert second["spec"]["nodeName"] == one_gpu
        slots = {e["name"]: e.get("value") for e in second["spec"]["containers"][0]["env"]}
        assert slots["PREDICTORS_FLUX_SLOTS"] == "3"
        kube("rollout", "status", f"deployment/{MODEL}-predictor", "--timeout=30s")
