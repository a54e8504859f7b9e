"""Two models in one pod: what is rendered for both names, and what is refused by a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.asked_cluster import render_in
from tests.deploy.chart import refusal, render, template

CASE = "ci/colocated-values.yaml"
ON_CLAIMS = (
    'models.flux.storage={"uri": "pvc://weights/flux"}',
    'models.qwen-vl.storage={"uri": "pvc://words/qwen"}',
)


def of_kind(kind: str, *sets: str) -> dict[str, Any]:
    """The rendered objects of a kind, by name."""
    found = render(CASE, sets=sets)
    return {each["metadata"]["name"]: each for each in found if each["kind"] == kind}


def predictor(*sets: str) -> dict[str, Any]:
    services = of_kind("InferenceService", *sets)
    assert list(services) == ["flux"], "one pod"
    made: dict[str, Any] = services["flux"]["spec"]["predictor"]
    return made


def environment(model: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in model["env"] if "value" in each}


def test_one_inference_service_serves_both_names_with_the_parts_and_settings_of_both() -> None:
    model = predictor()["model"]
    assert model["args"] == ["--model", "qwen-vl=/mnt/colocated"]
    found = environment(model)
    assert found["PREDICTORS_FLUX_MEMORY_FRACTION"] == "0.6"
    assert found["PREDICTORS_QWEN_VL_MEMORY_FRACTION"] == "0.35"
    assert found["PREDICTORS_SHARING_TOKEN_WAIT_MS"] == "20"
    assert model["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_both_checkpoints_are_downloaded_by_one_pod() -> None:
    made = predictor()
    assert "storageUri" not in made["model"]
    assert made["storageUris"] == [
        {"uri": "hf://black-forest-labs/FLUX.1-dev", "mountPath": "/mnt/models"},
        {"uri": "hf://Qwen/Qwen2.5-VL-7B-Instruct", "mountPath": "/mnt/colocated"},
    ]


def test_a_checkpoint_on_a_claim_is_a_volume() -> None:
    made = predictor(*ON_CLAIMS)
    assert made["model"]["storageUri"] == "pvc://weights/flux"
    assert made["model"]["args"] == ["--model", "qwen-vl=/colocated"]
    claim = {"claimName": "words", "readOnly": True}
    assert {"name": "claim-0", "persistentVolumeClaim": claim} in made["volumes"]
    mount = {"name": "claim-0", "mountPath": "/colocated", "readOnly": True, "subPath": "qwen"}
    assert mount in made["model"]["volumeMounts"]


def test_two_checkpoints_on_one_claim_are_folders_of_one_volume() -> None:
    made = predictor(ON_CLAIMS[0], 'models.qwen-vl.storage={"uri": "pvc://weights/qwen"}')
    assert made["model"]["storageUri"] == "pvc://weights/flux"
    found = [each for each in made["volumes"] if "persistentVolumeClaim" in each]
    claim = {"claimName": "weights", "readOnly": True}
    assert found == [{"name": "kserve-pvc-source", "persistentVolumeClaim": claim}]
    mounts = {each["mountPath"]: each for each in made["model"]["volumeMounts"]}
    assert {path: each["subPath"] for path, each in mounts.items()} == {
        "/mnt/models": "flux", "/colocated": "qwen",
    }  # fmt: skip
    assert {each["name"] for each in mounts.values()} == {"kserve-pvc-source"}


def test_a_checkpoint_in_a_folder_of_a_claim_stands_beside_a_downloaded_one() -> None:
    made = predictor('models.flux.storage={"uri": "pvc://weights/flux"}')
    assert made["storageUris"] == [
        {"uri": "hf://Qwen/Qwen2.5-VL-7B-Instruct", "mountPath": "/mnt/colocated"}
    ]
    mount = {"name": "kserve-pvc-source", "mountPath": "/mnt/models", "readOnly": True}
    assert mount | {"subPath": "flux"} in made["model"]["volumeMounts"]


def test_the_pod_is_ready_when_both_models_are() -> None:
    model = predictor()["model"]
    for probe in ("startupProbe", "readinessProbe"):
        assert model[probe]["httpGet"]["path"] == "/v2/health/ready"
    assert model["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"


def test_both_names_have_a_route_and_the_second_a_service_to_the_same_pods() -> None:
    service = of_kind("Service")["qwen-vl-predictor"]["spec"]
    assert service["selector"]["serving.kserve.io/inferenceservice"] == "flux"
    assert [(port["port"], port["targetPort"]) for port in service["ports"]] == [
        (80, 8080),
        (8081, 8081),
    ]
    routes = {
        route["spec"]["hostnames"][0]: route["spec"]["rules"][0]["backendRefs"][0]["name"]
        for route in of_kind("HTTPRoute").values()
    }
    assert routes == {
        "flux.example.com": "flux-predictor",
        "qwen-vl.example.com": "qwen-vl-predictor",
    }


def test_what_belongs_to_pods_is_made_once_and_each_name_is_tried() -> None:
    assert list(of_kind("PodDisruptionBudget")) == ["predictors-flux"]
    assert list(of_kind("ServiceAccount")) == ["predictors-flux"]
    tests = of_kind("Pod")
    assert sorted(tests) == ["predictors-flux-test", "predictors-qwen-vl-test"]
    asked = tests["predictors-qwen-vl-test"]["spec"]["containers"][0]["command"]
    assert any("qwen-vl-predictor" in word for word in asked)


def test_the_notes_have_a_line_for_each_name() -> None:
    shown = """{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "notes"}, "data": {
        "text": {{ include "predictors.notes" . | toJson }} }}"""
    found = of_kind("ConfigMap", f"extraObjects={json.dumps([shown])}")
    notes = found["notes"]["data"]["text"]
    assert "== qwen-vl (qwen-vl, hf://Qwen/Qwen2.5-VL-7B-Instruct), in the pods of flux" in notes
    assert "port-forward svc/qwen-vl-predictor" in notes
    assert notes.count("wait --for=condition=Ready isvc/flux ") == 2
    assert "gateway.enabled has no effect" not in notes


def test_the_order_of_the_names_does_not_matter() -> None:
    turned = template(CASE, sets=('colocate=["qwen-vl", "flux"]',))
    assert sorted(turned.split("---\n")) == sorted(template(CASE).split("---\n"))


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (('colocate=["flux"]',), "colocate has 1 models: name two"),
        (('colocate=["flux", "other"]',), "names other, which is no enabled model: there are flux"),
        (("models.qwen-vl.enabled=false",), "names qwen-vl, which is no enabled model"),
        (
            ('models.qwen-vl.format="flux"',),
            "two models of the format flux",
        ),
        (
            ('models.qwen-vl.image={"tag": "2"}',),
            "models.qwen-vl.image beside colocate: one process has one image and one Serv",
        ),
        (
            ('models.qwen-vl.resources={"limits": {"memory": "8Gi"}}',),
            "models.qwen-vl.resources has no effect beside colocate, the pod is that of",
        ),
        (
            ('models.qwen-vl.storage.secretName="other"',),
            "models.qwen-vl.storage.secretName has no effect beside colocate",
        ),
        (
            (
                'models.flux.canary=[{"name": "next", "trafficPercent": 10, "replicas": 1}]',
                "models.flux.gpu.spare=1",
            ),
            "models.flux.canary beside colocate: a canary would be a second pod with both models",
        ),
        (
            ('models.qwen-vl.autoscaling={"enabled": true}', "models.qwen-vl.replicas.max=2"),
            "beside colocate",
        ),
        (
            ('models.flux.autoscaling={"enabled": true}', "models.flux.replicas.max=2"),
            "models.flux.autoscaling.enabled beside colocate",
        ),
        (("models.qwen-vl.gpuMemoryFraction=0",), "colocate on a GPU needs models.qwen-vl.gpuM"),
        (
            ("models.qwen-vl.gpuMemoryFraction=0.5",),
            "gpuMemoryFraction of both colocated models is 1.1 together, more than 1",
        ),
        (
            (
                "models.flux.settings.queue.capacity=32",
                "models.qwen-vl.settings.queue.capacity=64",
            ),
            "models.qwen-vl.settings.queue.capacity is 64 and that of models.flux is 32",
        ),
        (
            ("models.flux.settings.flux.memory_fraction=0.5",),
            "models.flux.settings.flux.memory_fraction is the chart's: say gpuMemoryFraction",
        ),
        (
            ('models.qwen-vl.storage.uri="oci://registry.example.com/qwen:1"',),
            "an image of a model is mounted alone",
        ),
    ],
)
def test_what_one_pod_can_not_be_is_refused_by_a_sentence(
    sets: tuple[str, ...], message: str
) -> None:
    assert message in " ".join(refusal(CASE, sets=sets).split())


def test_a_second_model_that_still_has_pods_is_refused_since_its_service_would_go_with_it(
    tmp_path: Path,
) -> None:
    """Helm takes over the Service that KServe made, which is deleted with its owner."""
    refused = render_in(tmp_path, {"qwen-vl": {}}, CASE)
    assert "there still is the InferenceService qwen-vl" in " ".join(refused.stderr.split())
    assert "models.qwen-vl.enabled false and no colocate" in " ".join(refused.stderr.split())
    before = render_in(tmp_path, {"flux": {}}, CASE)
    assert before.returncode == 0, before.stderr
