"""The activator of a model that is scaled to zero: its objects, its one right, who may reach whom,
what KEDA reads of it, and what is refused.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.deploy import chart

CASE = "ci/activator-values.yaml"
NAME = "predictors-flux-activator"


def object_of(kind: str, name: str = NAME, sets: tuple[str, ...] = ()) -> dict[str, Any]:
    return chart.of_kind(chart.render(CASE, sets=sets), kind)[name]


def test_there_is_none_unless_a_model_asks_for_it() -> None:
    for values in ("values-laptop.yaml", "ci/scale-to-zero-values.yaml"):
        assert not [o for o in chart.render(values) if "activator" in o["metadata"]["name"]]


def test_its_service_has_the_ports_of_kserves_and_selects_its_pods_alone() -> None:
    spec = object_of("Service")["spec"]
    assert {port["name"]: port["port"] for port in spec["ports"]} == {"http1": 80, "h2c": 8081}
    assert spec["ports"][1]["appProtocol"] == "kubernetes.io/h2c"
    template = object_of("Deployment")["spec"]["template"]
    assert spec["selector"].items() <= template["metadata"]["labels"].items()
    # what selects a model's pods must not find the activator's
    assert "serving.kserve.io/inferenceservice" not in template["metadata"]["labels"]
    (container,) = template["spec"]["containers"]
    named = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in spec["ports"]} <= named


def test_it_stands_before_kserves_service_and_wakes_kserves_deployment() -> None:
    (container,) = object_of("Deployment")["spec"]["template"]["spec"]["containers"]
    words = container["args"]
    flags = dict(zip(words[1::2], words[2::2], strict=True))
    host = f"flux-predictor.{chart.NAMESPACE}.svc"
    assert words[0] == "activator"
    assert flags == {
        "--model": "flux", "--deployment": "flux-predictor", "--upstream": f"http://{host}",
        "--grpc-upstream": f"{host}:8081",
    }  # fmt: skip


def test_its_only_right_is_the_scale_of_its_own_model() -> None:
    assert object_of("Role")["rules"] == [
        {
            "apiGroups": ["apps"],
            "resources": ["deployments/scale"],
            "resourceNames": ["flux-predictor"],
            "verbs": ["get", "patch"],
        }
    ]
    (subject,) = object_of("RoleBinding")["subjects"]
    pod = object_of("Deployment")["spec"]["template"]["spec"]
    assert subject == {"kind": "ServiceAccount", "name": NAME, "namespace": chart.NAMESPACE}
    assert pod["serviceAccountName"] == NAME
    assert pod["automountServiceAccountToken"] is True
    assert object_of("ServiceAccount")["automountServiceAccountToken"] is False


def test_its_values_are_settings_of_the_process() -> None:
    sets = (
        "models.flux.activator.maxPendingRequests=7",
        "models.flux.activator.maxPendingBytes=1048576",
        "models.flux.activator.waitTimeoutSeconds=77",
        "models.flux.settings.server.max_message_bytes=1000000",
    )
    (container,) = object_of("Deployment", sets=sets)["spec"]["template"]["spec"]["containers"]
    from predictors.environment import from_env

    given = {k: v for k, v in chart.environment(container).items() if k.startswith("PREDICTORS_")}
    settings = from_env(given)  # refuses an unknown name
    assert settings.activator.max_held == 7
    assert settings.activator.max_held_bytes == 1048576
    assert settings.activator.max_wait_s == 77
    assert settings.server.max_message_bytes == 1_000_000


def test_a_pod_that_ends_has_time_for_its_lingering_and_its_requests() -> None:
    spec = object_of("Deployment")["spec"]["template"]["spec"]
    env = chart.environment(spec["containers"][0])
    sleeps = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    taken = sleeps + sum(
        float(env[f"PREDICTORS_SERVER_{name}_S"]) for name in ("LINGER", "DRAIN_TIMEOUT")
    )
    assert spec["terminationGracePeriodSeconds"] >= taken + 10


def test_keda_reads_its_requests_and_a_query_of_ones_own_comes_first() -> None:
    def queries(*sets: str) -> list[str]:
        scaling = object_of("InferenceService", "flux", sets)["spec"]["predictor"]["autoScaling"]
        return [each["external"]["metric"]["query"] for each in scaling["metrics"]]

    own = f'{{namespace="{chart.NAMESPACE}",model="flux"}}'
    load, wake = queries()
    assert "activator" not in load
    assert f"sum(predictors_activator_requests_in_progress{own})" in wake
    assert f"increase(predictors_activator_requests_total{own}[2m])" in wake
    assert queries('models.flux.autoscaling.wakeQuery="up"')[1] == "up"


def test_its_series_are_those_of_the_process() -> None:
    from predictors import metrics

    assert metrics.activator_requests_in_progress._name == (
        "predictors_activator_requests_in_progress"
    )
    assert metrics.activator_requests_total._name == "predictors_activator_requests"


def grpc_paths() -> set[str]:
    """Of every gRPC service that the server offers."""
    from predictors.protocol.grpc import health, reflection
    from predictors.protocol.v2.grpc import SERVICE

    packages = (reflection.OLDER, reflection.NEWER)
    services = {SERVICE, health.SERVICE, *(f"{each}.ServerReflection" for each in packages)}
    return {f"/{each}" for each in services}


def test_messages_that_arrive_fit_into_its_memory() -> None:
    def places(*sets: str) -> str:
        (container,) = object_of("Deployment", NAME, sets)["spec"]["template"]["spec"]["containers"]
        found = {each["name"]: each.get("value") for each in container["env"]}
        return str(found["PREDICTORS_SERVER_MAX_ARRIVING_MESSAGES"])

    assert places() == "8"  # of 32 MiB, as many bytes as it may hold of HTTP
    assert places("models.flux.settings.server.max_message_bytes=4194304") == "32"
    assert places("models.flux.activator.maxPendingBytes=1048576") == "2"


def test_a_route_leads_to_it_and_waits_as_long_as_a_start_and_a_request() -> None:
    spec = object_of("HTTPRoute")["spec"]
    grpc, rest = spec["rules"]
    assert {each["path"]["value"] for each in grpc["matches"]} == grpc_paths()
    assert grpc["backendRefs"] == [{"name": NAME, "port": 8081}]
    assert rest["backendRefs"] == [{"name": NAME, "port": 80}]
    assert grpc["timeouts"] == rest["timeouts"] == {"request": "540s"}
    assert spec["hostnames"] == [f"flux.{chart.NAMESPACE}.example.com"]


def test_callers_reach_it_it_reaches_the_model_and_the_api_and_prometheus_reaches_it() -> None:
    gate = 'networkPolicy.ingressFrom=[{"podSelector":{"matchLabels":{"role":"caller"}}}]'
    policies = chart.of_kind(chart.render(CASE, sets=(gate,)), "NetworkPolicy")
    own, model = policies[NAME]["spec"], policies["predictors-flux"]["spec"]
    labels = object_of("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert own["podSelector"]["matchLabels"].items() <= labels.items()
    calls, scrapes = own["ingress"]
    assert calls["from"] == [{"podSelector": {"matchLabels": {"role": "caller"}}}]
    assert [port["port"] for port in scrapes["ports"]] == [9090]
    to_model = own["egress"][0]
    chosen = {"serving.kserve.io/inferenceservice": "flux"}
    assert to_model["to"] == [{"podSelector": {"matchLabels": chosen}}]
    assert [port["port"] for port in own["egress"][-1]["ports"]] == [443, 6443]
    allowed = [peer["podSelector"]["matchLabels"] for peer in model["ingress"][0]["from"]]
    assert own["podSelector"]["matchLabels"] in allowed
    monitor = object_of("PodMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert monitor["podMetricsEndpoints"][0]["interval"] == "5s"


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (("models.flux.replicas.min=1",),
         "models.flux.activator.enabled needs replicas.min 0, which is 1"),
        (('tls.secretName="certificate"',), "activator.enabled and tls.secretName exclude"),
        (("networkPolicy.dnsTo=[]",), "activator.enabled needs networkPolicy.dnsTo"),
        (("models.flux.autoscaling.enabled=false",), "replicas.min 0 needs autoscaling.enabled"),
        (("models.flux.activator.enabled=false",), "replicas.min 0 needs activator.enabled, or"),
        (("models.flux.activator.maxPendingRequests=0",), "maxPendingRequests is 0: at least 1"),
        (("models.flux.activator.maxWait=3",), "activator.maxWait: there is no such key"),
        (("models.flux.settings.activator.max_held=3",), "settings.activator: there is no such"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_a_sentence(sets: tuple[str, ...], words: str) -> None:
    assert words in chart.refusal(CASE, sets=sets)


def notes(*sets: str) -> str:
    """The text that Helm prints after an install."""
    shown = """{kind: ConfigMap, apiVersion: v1, metadata: {name: notes}, data: {text:
        {{ include "predictors.notes" . | toJson }} }}"""
    objects = chart.render(CASE, sets=(*sets, f"extraObjects={json.dumps([shown])}"))
    text: str = chart.of_kind(objects, "ConfigMap")["notes"]["data"]["text"]
    return text


def test_the_notes_call_it_and_warn_where_nothing_scrapes_it() -> None:
    said = notes()
    assert f"port-forward svc/{NAME} " in said
    assert f"http://{NAME}.{chart.NAMESPACE}.svc/v2/models/flux/infer" in said
    assert "WARNING: models.flux.activator" not in said
    assert "WARNING: models.flux.activator: KEDA reads" in notes("podMonitor.enabled=false")
