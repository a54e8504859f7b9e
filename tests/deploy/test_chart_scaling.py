"""Classes of autoscaling beside KEDA's: a HorizontalPodAutoscaler of the chart, and a scaler that
is another's. Rendered, held to the schemas of every version of Kubernetes, and refused where keys
of two classes meet.
"""

from __future__ import annotations

import json

import pytest

from tests.deploy import schemas
from tests.deploy.chart import NAMESPACE, Object, of_kind, refusal, render, template

HPA = "ci/hpa-values.yaml"
CPU = "models.flux.autoscaling.targetCPUUtilizationPercentage=80"
LAPTOP = "values-laptop.yaml"
ON = 'models.flux.autoscaling={"enabled":true,"class":"hpa"}'
TWO = 'models.flux.replicas={"min":1,"max":2}'


def scalers() -> dict[str, Object]:
    """The autoscalers of the case, by name."""
    return of_kind(render(HPA), "HorizontalPodAutoscaler")


def resource(name: str, percent: int) -> Object:
    target = {"type": "Utilization", "averageUtilization": percent}
    return {"type": "Resource", "resource": {"name": name, "target": target}}


def test_percentages_become_metrics_of_the_models_deployment() -> None:
    scaler = scalers()["predictors-flux"]
    assert scaler["apiVersion"] == "autoscaling/v2"
    assert scaler["metadata"]["namespace"] == NAMESPACE
    spec = scaler["spec"]
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "flux-predictor"}
    assert spec["scaleTargetRef"] == target
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 6)
    assert spec["metrics"] == [resource("cpu", 80), resource("memory", 90)]


def test_metrics_of_every_kind_are_taken_with_the_models_name_in_them() -> None:
    external, container = scalers()["predictors-captions"]["spec"]["metrics"]
    metric = external["external"]["metric"]
    assert metric["selector"]["matchLabels"] == {"namespace": NAMESPACE, "model": "captions"}
    assert external["external"]["target"] == {"type": "AverageValue", "averageValue": "4"}
    assert container["containerResource"]["container"] == "kserve-container"


def test_behaviour_is_laid_over_the_seconds() -> None:
    assert scalers()["predictors-flux"]["spec"]["behavior"] == {
        "scaleDown": {"stabilizationWindowSeconds": 120},
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}],
        },
    }
    down = 'models.flux.autoscaling.behavior={"scaleDown":{"selectPolicy":"Disabled"}}'
    services = of_kind(render("ci/gpu-keda-values.yaml", sets=(down,)), "InferenceService")
    keda = services["flux"]["spec"]["predictor"]["autoScaling"]["behavior"]
    assert keda["scaleDown"] == {"stabilizationWindowSeconds": 300, "selectPolicy": "Disabled"}


def test_only_one_scaler_ever_changes_a_model() -> None:
    """KServe makes none of its own, would write over one with the Deployment's name, and the third
    model's is not the chart's."""
    assert set(scalers()) == {"predictors-flux", "predictors-captions"}
    for service in of_kind(render(HPA), "InferenceService").values():
        said = service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"]
        assert said == "external"
        assert "autoScaling" not in service["spec"]["predictor"]
    assert "HorizontalPodAutoscaler" not in template("ci/gpu-keda-values.yaml")
    assert "HorizontalPodAutoscaler" not in template(LAPTOP, sets=(CPU,)), "not enabled"


@pytest.mark.parametrize("version", schemas.VERSIONS)
def test_each_fits_the_schema_of_kubernetes(version: str) -> None:
    for each in [*scalers().values(), *of_kind(render(HPA), "InferenceService").values()]:
        assert list(schemas.wrongs(each, version)) == []


WRONG = [
    ((ON,), "models.flux.autoscaling.class hpa needs something to scale by: say autoscaling.metr"),
    ((ON, CPU, 'models.flux.autoscaling.query="up"'),
     "models.flux.autoscaling.query is for autoscaling.class keda, and the class is hpa"),
    (("models.flux.autoscaling.enabled=true", CPU),
     "targetCPUUtilizationPercentage is for autoscaling.class hpa, and the class is keda"),
    ((ON, CPU, 'models.flux.replicas={"min":0,"max":2}',
      'models.flux.autoscaling.wakeQuery="up"'),
     "models.flux.replicas.min 0 needs autoscaling.class keda"),
    ((ON, 'models.flux.autoscaling.metrics=[{"type":"Guess"}]'), "autoscaling.metrics[0].type"),
    ((ON, CPU, 'models.flux.autoscaling.class="kpa"'), "models.flux.autoscaling.class"),
    ((ON, CPU, 'models.flux.autoscaling.behavior={"scaleAway":{}}'), "behavior.scaleAway"),
    (('models.flux.autoscaling={"hpa":{"enabled":true}}',), "say class: hpa"),
    (('models.flux.scaleTarget=80',), "say models.flux.autoscaling.class hpa"),
]  # fmt: skip


@pytest.mark.parametrize(("sets", "said"), WRONG, ids=lambda each: str(each)[:60])
def test_keys_without_effect_are_refused_by_name(sets: tuple[str, ...], said: str) -> None:
    assert said in refusal(LAPTOP, sets=(TWO, *sets))


def warnings(*sets: str) -> list[str]:
    """The warnings of an install; `helm template` shows it only within an object."""
    shown = """{kind: ConfigMap, apiVersion: v1, metadata: {name: shown}, data: {text:
        {{ include "predictors.warnings" . | toJson }} }}"""
    objects = render(LAPTOP, sets=(*sets, f"extraObjects={json.dumps([shown])}"))
    said: list[str] = json.loads(of_kind(objects, "ConfigMap")["shown"]["data"]["text"])
    return said


def test_a_container_without_a_request_is_a_warning() -> None:
    """Kubernetes reckons no percentage of a pod of which one container requests nothing."""
    beside = {"name": "proxy", "image": "proxy:1"}
    bare = f"models.flux.extraContainers={json.dumps([beside])}"
    (warning,) = warnings(TWO, ON, CPU, bare)
    assert "models.flux.extraContainers[0] requests no cpu" in warning
    for empty in ({"resources": None}, {"resources": {"requests": None}}):  # keys without a value
        text = json.dumps([beside | empty])
        assert warnings(TWO, ON, CPU, f"models.flux.extraContainers={text}") == [warning]
    asks = {**beside, "resources": {"requests": {"cpu": "1"}}}
    assert warnings(TWO, ON, CPU, f"models.flux.extraContainers={json.dumps([asks])}") == []
    assert warnings(bare) == []
    (warning,) = warnings(TWO, ON, CPU, 'models.flux.resources={"requests":{"cpu":null}}')
    assert "models.flux.resources requests no cpu" in warning
