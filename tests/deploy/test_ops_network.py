"""NetworkPolicies let through what a model needs and nothing else; budgets bound what may go."""

from __future__ import annotations

import pytest
import yaml

from tests.deploy.chart import CASES, CHART, Object, of_kind, refusal, render

LAPTOP = "values-laptop.yaml"
ON = "networkPolicy.enabled=true"
GATEWAY = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateway"}}}
ASKED = '{"podSelector":{"matchLabels":{"role":"caller"}}}'


def policies(*sets: str, values: str = LAPTOP) -> dict[str, Object]:
    found = of_kind(render(values, sets=(ON, *sets)), "NetworkPolicy")
    return {name: each["spec"] for name, each in found.items()}


def ports(rule: Object) -> set[tuple[int, str]]:
    return {(each["port"], each["protocol"]) for each in rule["ports"]}


def test_there_is_none_unless_asked_for_and_then_one_per_model() -> None:
    assert not of_kind(render(LAPTOP), "NetworkPolicy")
    found = policies()
    assert set(found) == {"predictors-flux", "predictors-qwen-vl"}
    for name, spec in found.items():
        model = name.removeprefix("predictors-")
        chosen = {"matchLabels": {"serving.kserve.io/inferenceservice": model}}
        assert spec["podSelector"] == chosen
        assert spec["policyTypes"] == ["Ingress", "Egress"]


def test_without_a_word_the_own_namespace_calls_and_prometheus_scrapes() -> None:
    calls, scrapes = policies()["predictors-flux"]["ingress"]
    assert calls["from"] == [{"podSelector": {}}]
    assert ports(calls) == {(8080, "TCP"), (8081, "TCP")}
    namespace = {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
    assert scrapes["from"] == [{"namespaceSelector": namespace}]
    assert ports(scrapes) == {(9090, "TCP")}


def test_named_callers_replace_the_namespace_and_helm_test_stays_allowed() -> None:
    namespace = '{"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"gateway"}}}'
    found = policies(
        f"networkPolicy.ingressFrom=[{namespace}]",
        f"models.qwen-vl.networkPolicy.ingressFrom=[{ASKED}]",
    )
    flux = found["predictors-flux"]["ingress"][0]["from"]
    qwen = found["predictors-qwen-vl"]["ingress"][0]["from"]
    assert {"podSelector": {}} not in [*flux, *qwen]
    assert flux[0] == qwen[0] == GATEWAY
    assert qwen[1] == {"podSelector": {"matchLabels": {"role": "caller"}}}
    tester = of_kind(render(LAPTOP), "Pod")["predictors-flux-test"]["metadata"]["labels"]
    assert flux[-1]["podSelector"]["matchLabels"].items() <= tester.items()
    without = policies(f"networkPolicy.ingressFrom=[{ASKED}]", "tests.enabled=false")
    assert len(without["predictors-flux"]["ingress"][0]["from"]) == 1


def test_no_scraper_no_rule() -> None:
    assert len(policies("networkPolicy.metricsFrom=[]")["predictors-flux"]["ingress"]) == 1


def test_pods_reach_dns_and_with_events_the_api_server_and_nothing_else() -> None:
    names, server = policies()["predictors-flux"]["egress"]
    assert ports(names) == {(53, "UDP"), (53, "TCP")}
    assert {"matchLabels": {"k8s-app": "kube-dns"}} in [p.get("podSelector") for p in names["to"]]
    assert ports(server) == {(443, "TCP"), (6443, "TCP")}
    assert "to" not in server  # its address is the cluster's secret
    only = policies("events.enabled=false")["predictors-flux"]["egress"]
    assert only == [names]


def test_the_api_server_can_be_named() -> None:
    block = '{"ipBlock":{"cidr":"10.0.0.1/32"}}'
    _, server = policies(f"networkPolicy.apiServerTo=[{block}]")["predictors-flux"]["egress"]
    assert server["to"] == [{"ipBlock": {"cidr": "10.0.0.1/32"}}]


@pytest.mark.parametrize(
    ("uri", "downloads"),
    [("hf://org/model", True), ("pvc://claim/path", False), ("oci://registry.local/m", False)],
)
def test_only_a_model_that_the_pod_itself_downloads_may_reach_out(
    uri: str, downloads: bool
) -> None:
    sets = (f'models.flux.storage.uri="{uri}"', "events.enabled=false")
    rules = policies(*sets)["predictors-flux"]["egress"][1:]
    assert [ports(rule) for rule in rules] == [{(443, "TCP")}] * downloads
    assert len(policies(*sets)["predictors-qwen-vl"]["egress"]) == 1
    mirror = 'networkPolicy.storageTo=[{"ipBlock":{"cidr":"10.9.0.0/16"}}]'
    rules = policies(*sets, mirror)["predictors-flux"]["egress"][1:]
    assert [rule["to"][0]["ipBlock"]["cidr"] for rule in rules] == ["10.9.0.0/16"] * downloads


def test_a_canary_that_is_downloaded_may_reach_out_as_well() -> None:
    said = '[{"name":"next","trafficPercent":5,"storage":{"uri":"%s"}}]'
    for uri, rules in (("hf://org/model", 2), ("pvc://claim/next", 1)):
        sets = (f"models.flux.canary={said % uri}", "events.enabled=false")
        found = policies(*sets)
        assert len(found["predictors-flux"]["egress"]) == rules
        assert len(found["predictors-qwen-vl"]["egress"]) == 1


def test_more_egress_is_added_as_it_is_written() -> None:
    rule = {"to": [{"podSelector": {"matchLabels": {"app": "otel"}}}], "ports": [{"port": 4318}]}
    said = '{"to":[{"podSelector":{"matchLabels":{"app":"otel"}}}],"ports":[{"port":4318}]}'
    assert policies(f"networkPolicy.extraEgress=[{said}]")["predictors-flux"]["egress"][-1] == rule


def budgets(*sets: str) -> dict[str, Object]:
    found = of_kind(render(LAPTOP, sets=sets), "PodDisruptionBudget")
    return {name: each["spec"] for name, each in found.items()}


def test_by_default_a_drain_takes_one_pod_at_a_time_and_never_waits_for_an_unready_one() -> None:
    found = budgets()
    assert set(found) == {"predictors-flux", "predictors-qwen-vl"}
    for name, spec in found.items():
        labels = {"serving.kserve.io/inferenceservice": name.removeprefix("predictors-")}
        assert spec == {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": labels},
        }


@pytest.mark.parametrize(
    ("said", "key", "value"),
    [
        ("minAvailable=2", "minAvailable", 2),
        ('minAvailable="50%"', "minAvailable", "50%"),
        ("maxUnavailable=0", "maxUnavailable", 0),
    ],
)
def test_a_budget_says_what_must_stay_or_what_may_go(said: str, key: str, value: object) -> None:
    spec = budgets(f"models.flux.pdb.{said}")["predictors-flux"]
    assert spec[key] == value
    assert len({"minAvailable", "maxUnavailable"} & set(spec)) == 1


def test_a_budget_can_be_left_out_and_needs_a_number() -> None:
    assert set(budgets("models.flux.pdb.enabled=false")) == {"predictors-qwen-vl"}
    message = refusal(LAPTOP, sets=("defaults.pdb.maxUnavailable=null",))
    assert "models.flux.pdb.enabled needs maxUnavailable or minAvailable" in message
    assert "maxUnavailable" in refusal(LAPTOP, sets=('defaults.pdb.maxUnavailable="half"',))


def test_no_case_has_two_budgets_for_one_pod() -> None:
    for values in CASES:
        found = of_kind(render(values), "PodDisruptionBudget").values()
        chosen = [yaml.safe_dump(each["spec"]["selector"]) for each in found]
        assert len(set(chosen)) == len(chosen)


def test_production_lets_a_gateway_and_prometheus_through() -> None:
    values = yaml.safe_load((CHART / "values-production.yaml").read_text())
    assert values["networkPolicy"]["enabled"]
    for spec in policies(values="values-production.yaml").values():
        assert any("namespaceSelector" in each for each in spec["ingress"][0]["from"])
