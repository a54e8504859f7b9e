"""Every object of every profile, case and folder of manifests fits the schemas of Kubernetes 1.31
to 1.35, strictly, of KServe and of the Prometheus Operator.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.deploy import schemas
from tests.deploy.chart import CASES, PROFILES, Object, of_kind, render
from tests.deploy.test_manifests import FOLDERS, built

EVERYTHING = (  # whatever a switch of the chart can add to a profile
    "networkPolicy.enabled=true",
    "podMonitor.enabled=true",
    "prometheusRule.enabled=true",
    "dashboard.enabled=true",
    "prepull.enabled=true",
)
FILES = [*PROFILES, *CASES]


def complaints(objects: list[Object], version: str) -> list[str]:
    """The problems that the schemas find in the objects."""
    return [
        f"{each['kind']} {each['metadata']['name']} {wrong}"
        for each in objects
        for wrong in schemas.wrongs(each, version)
    ]


def at(found: Any, path: str) -> Any:
    for part in path.split("."):
        found = found[int(part) if part.isdigit() else part]
    return found


@pytest.mark.parametrize("version", schemas.VERSIONS)
@pytest.mark.parametrize("values", FILES, ids=lambda path: path.name)
def test_every_rendered_object_fits(values: Path, version: str) -> None:
    objects = render(values, sets=EVERYTHING)
    assert len(objects) >= 10
    assert complaints(objects, version) == []


@pytest.mark.parametrize("version", schemas.VERSIONS)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_what_kustomize_applies_fits(folder: Path, version: str) -> None:
    assert complaints(built(folder), version) == []


def test_every_kind_that_the_chart_can_render_is_among_them() -> None:
    kinds = {each["kind"] for values in FILES for each in render(values, sets=EVERYTHING)}
    assert kinds >= {
        "ConfigMap", "DaemonSet", "InferenceService", "Job", "LocalModelCache", "NetworkPolicy",
        "PersistentVolumeClaim", "Pod", "PodDisruptionBudget", "PodMonitor", "PrometheusRule",
        "Role", "RoleBinding", "ServiceAccount", "ServingRuntime",
    }  # fmt: skip


BROKEN: dict[str, tuple[str, str, object]] = {  # kind: where, which key, what
    "DaemonSet": ("spec.template.spec", "hostNetwrk", True),
    "Job": ("spec", "backoffLimit", "one"),
    "Pod": ("spec.containers.0", "imagePullPolice", "Never"),
    "NetworkPolicy": ("spec.ingress.0.ports.0", "protocl", "TCP"),
    "PodDisruptionBudget": ("spec", "minAvailabel", 1),
    "PersistentVolumeClaim": ("spec", "accessModes", "ReadWriteOnce"),
    "Role": ("rules.0", "verbs", "get"),
    "ServingRuntime": ("spec.containers.0", "imag", "a"),
    "InferenceService": ("spec.predictor", "minReplicas", "two"),
    "PodMonitor": ("spec.podMetricsEndpoints.0", "pth", "/metrics"),
    "PrometheusRule": ("spec.groups.0.rules.0", "expr", None),
}


@pytest.mark.parametrize("version", schemas.VERSIONS)
@pytest.mark.parametrize("kind", BROKEN)
def test_a_schema_sees_a_wrong_object(kind: str, version: str) -> None:
    found = next(iter(of_kind(render("values-production.yaml", sets=EVERYTHING), kind).values()))
    assert complaints([found], version) == []
    where, key, value = BROKEN[kind]
    broken = copy.deepcopy(found)
    at(broken, where)[key] = value
    (wrong, *_) = complaints([broken], version)
    assert key in wrong or json.dumps(value).strip('"') in wrong, wrong


def test_a_label_that_is_a_number_is_seen_on_a_custom_object_too() -> None:
    found = next(iter(of_kind(render("values-laptop.yaml"), "InferenceService").values()))
    broken = copy.deepcopy(found)
    broken["metadata"]["labels"]["tier"] = 1
    assert complaints([broken], "1.34")


def test_a_kind_without_a_schema_is_no_kind_that_fits() -> None:
    unknown = {"apiVersion": "serving.kserve.io/v1", "kind": "InferenceService", "metadata": {}}
    with pytest.raises(schemas.NoSchema):
        complaints([unknown], "1.34")
