"""PodMonitor, rules and dashboard: off unless asked for, and with the numbers of the values."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from tests.deploy.chart import CHART, NAMESPACE, Object, of_kind, refusal, render

LAPTOP = "values-laptop.yaml"
ON = "prometheusRule.enabled=true"
BASE = "https://git.example.com/vision-predictors/docs/operations.md"
ALERTS = CHART / "alerts"


def monitor(*sets: str) -> Object:
    sets = ("podMonitor.enabled=true", *sets)
    return of_kind(render(LAPTOP, sets=sets), "PodMonitor")["predictors"]


def groups(*sets: str) -> dict[str, list[Object]]:
    found = of_kind(render(LAPTOP, sets=(ON, *sets)), "PrometheusRule")["predictors"]
    return {group["name"]: group["rules"] for group in found["spec"]["groups"]}


def alerts(*sets: str) -> dict[str, Object]:
    return {rule["alert"]: rule for rule in groups(*sets)["predictors-alerts"]}


def shipped(name: str) -> dict[str, list[Object]]:
    """The rules of a file beside the chart, by group."""
    content: dict[str, Any] = yaml.safe_load((ALERTS / f"{name}.yaml").read_text())
    return {group["name"]: group["rules"] for group in content["groups"]}


def board(*sets: str) -> Object:
    sets = ("dashboard.enabled=true", *sets)
    return of_kind(render(LAPTOP, sets=sets), "ConfigMap")["predictors-dashboard"]


def test_nothing_of_it_is_there_unless_asked_for() -> None:
    kinds = {each["kind"] for each in render(LAPTOP)}
    assert not kinds & {"PodMonitor", "PrometheusRule", "ConfigMap"}


def test_the_monitor_finds_the_pods_by_kserves_label_and_the_port_by_name() -> None:
    found = monitor('podMonitor.labels.release="prometheus"')
    assert found["metadata"]["labels"]["release"] == "prometheus"
    (chosen,) = found["spec"]["selector"]["matchExpressions"]
    assert chosen == {
        "key": "serving.kserve.io/inferenceservice",
        "operator": "In",
        "values": ["flux", "qwen-vl"],
    }
    (endpoint,) = found["spec"]["podMetricsEndpoints"]
    runtime = of_kind(render(LAPTOP), "ServingRuntime")["predictors-flux"]
    ports = {port["name"]: port for port in runtime["spec"]["containers"][0]["ports"]}
    assert endpoint["port"] == "metrics"
    assert ports["metrics"]["containerPort"] == 9090
    annotated = runtime["spec"]["annotations"]["prometheus.kserve.io/port"]
    assert annotated == "9090"
    assert endpoint["path"] == "/metrics"
    assert endpoint["interval"] == "15s"
    assert "scrapeTimeout" not in endpoint


def test_the_monitor_sets_the_label_that_rules_and_dashboard_ask_for() -> None:
    (rule,) = monitor()["spec"]["podMetricsEndpoints"][0]["relabelings"]
    assert rule["targetLabel"] == "isvc"
    # Prometheus writes a pod's label with every odd character as an underscore
    label = re.sub(r"\W", "_", "serving.kserve.io/inferenceservice")
    assert rule["sourceLabels"] == [f"__meta_kubernetes_pod_label_{label}"]


def test_the_monitor_takes_what_values_say_of_scraping() -> None:
    dropped = '[{"action":"drop","sourceLabels":["__name__"],"regex":"python_.*"}]'
    (endpoint,) = monitor(
        'podMonitor.interval="1m"',
        'podMonitor.scrapeTimeout="20s"',
        f"podMonitor.metricRelabelings={dropped}",
    )["spec"]["podMetricsEndpoints"]
    assert (endpoint["interval"], endpoint["scrapeTimeout"]) == ("1m", "20s")
    assert endpoint["metricRelabelings"] == json.loads(dropped)
    assert "interval" in refusal(LAPTOP, sets=('podMonitor.interval="often"',))


def test_without_models_there_is_nothing_to_scrape() -> None:
    assert not of_kind(render(sets=("podMonitor.enabled=true",)), "PodMonitor")


def test_by_default_the_rules_are_those_beside_the_chart() -> None:
    found = groups()
    own = found.pop("predictors-alerts")
    assert found == shipped("recording")
    (expected,) = shipped("alerts").values()
    by_name = {rule["alert"]: rule for rule in expected}
    assert {rule["alert"]: rule for rule in own} == by_name


def test_every_alert_links_to_a_section_that_exists() -> None:
    page = (CHART.parents[1] / "docs/operations.md").read_text()
    sections = {line.removeprefix("## ").lower() for line in page.splitlines() if line[:3] == "## "}
    for rule in alerts(f'prometheusRule.runbooks="{BASE}"').values():
        base, _, section = rule["annotations"]["runbook_url"].partition("#")
        assert base == BASE
        assert section in sections


def test_the_address_of_the_runbooks_is_one() -> None:
    message = refusal(LAPTOP, sets=(ON, 'prometheusRule.runbooks="docs"'))
    assert "runbooks" in message


def test_values_change_one_threshold_and_leave_the_rest() -> None:
    before = alerts()
    after = alerts(
        'prometheusRule.alerts={"QueueSaturated":{"above":0.5},"FirstImageSlow":{"for":"1h"},'
        '"EngineStalled":{"severity":"warning"},"HeadOfLineTooOld":{"above":120}}'
    )
    assert after["PredictorsQueueSaturated"]["expr"].endswith(" > 0.5")
    assert after["PredictorsQueueSaturated"]["for"] == before["PredictorsQueueSaturated"]["for"]
    assert after["PredictorsHeadOfLineTooOld"]["expr"] == "predictors_queue_oldest_seconds > 120"
    assert after["PredictorsFirstImageSlow"]["for"] == "1h"
    assert after["PredictorsEngineStalled"]["labels"] == {"severity": "warning"}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {
        "PredictorsQueueSaturated", "PredictorsFirstImageSlow", "PredictorsEngineStalled",
        "PredictorsHeadOfLineTooOld",
    }  # fmt: skip


def test_the_objective_reaches_both_budget_alerts() -> None:
    found = alerts("prometheusRule.slo.objective=0.995")
    for name in ("PredictorsErrorBudgetBurnFast", "PredictorsErrorBudgetBurnSlow"):
        assert found[name]["expr"].count("(1 - 0.995)") == 2
        assert "0.99)" not in found[name]["expr"]


def test_an_alert_can_be_taken_away_and_only_one_that_exists_changed() -> None:
    before = alerts()
    after = alerts('prometheusRule.alerts={"ModelGone":false}')
    assert set(before) - set(after) == {"PredictorsModelGone"}
    message = refusal(LAPTOP, sets=(ON, 'prometheusRule.alerts={"ModelGoen":{"for":"1m"}}'))
    assert "prometheusRule.alerts.ModelGoen" in message
    assert "ModelGone" in message  # it names those there are
    message = refusal(LAPTOP, sets=(ON, 'prometheusRule.alerts={"ModelGone":{"over":1}}'))
    assert "over" in message


def test_labels_of_rules_and_of_alerts_are_distinct() -> None:
    sets = (ON, 'prometheusRule.labels.release="p"', 'prometheusRule.alertLabels.team="vision"')
    found = of_kind(render(LAPTOP, sets=sets), "PrometheusRule")["predictors"]
    assert found["metadata"]["labels"]["release"] == "p"
    for rule in alerts(*sets[1:]).values():
        assert rule["labels"]["team"] == "vision"
        assert "severity" in rule["labels"]


def test_vllms_names_can_be_left_out() -> None:
    found = groups("prometheusRule.vllmNames=false")
    assert set(found) == {"predictors-slo", "predictors-alerts"}


@pytest.mark.parametrize("values", [LAPTOP, "values-production.yaml"])
def test_every_expression_is_promql(values: str, tmp_path: Path) -> None:
    (found,) = of_kind(render(values, sets=(ON,)), "PrometheusRule").values()
    rules = [rule for group in found["spec"]["groups"] for rule in group["rules"]]
    assert len(rules) > 20
    for rule in rules:
        promql_parser.parse(rule["expr"])
    promtool = shutil.which("promtool")
    if promtool:  # Prometheus' own word on annotations and durations, where it is installed
        (tmp_path / "rules.yaml").write_text(yaml.safe_dump(found["spec"]))
        done = subprocess.run(
            [promtool, "check", "rules", str(tmp_path / "rules.yaml")],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_a_broken_expression_is_no_promql() -> None:
    with pytest.raises(ValueError, match="invalid promql"):
        promql_parser.parse("predictors_requests_waiting > <above>")


def test_the_dashboard_is_where_grafanas_sidecar_looks() -> None:
    found = board()
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["annotations"] == {"grafana_folder": "Vision Predictors"}
    assert found["metadata"]["namespace"] == NAMESPACE
    elsewhere = board('dashboard.namespace="grafana"', "dashboard.labels.grafana_dashboard=null")
    assert elsewhere["metadata"]["namespace"] == "grafana"
    assert "grafana_dashboard" not in elsewhere["metadata"]["labels"]


def test_the_dashboard_arrives_as_it_is_and_fits_into_a_config_map() -> None:
    text = board()["data"]["predictors.json"]
    assert json.loads(text) == json.loads((CHART / "dashboards/predictors.json").read_text())
    assert len(text) < 2**20


def test_every_panel_asks_promql() -> None:
    found = json.loads(board()["data"]["predictors.json"])
    asked = [target["expr"] for panel in found["panels"] for target in panel.get("targets", [])]
    assert len(asked) > 15
    numbers = {
        each["name"]: each["query"]
        for each in found["templating"]["list"]
        if each["type"] == "textbox"
    }
    for text in asked:
        for name, number in numbers.items():
            text = text.replace(f"${name}", number)
        promql_parser.parse(re.sub(r"\$__\w+", "1m", text))
