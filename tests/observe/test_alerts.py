"""Every alert fires and stays silent where it should, by promtool; every runbook is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from predictors import metrics
from predictors.settings import QueueSettings, ServerSettings

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "charts/predictors/alerts"
RULES = [
    rule
    for name in ("alerts", "recording")
    for group in yaml.safe_load((ALERTS / f"{name}.yaml").read_text())["groups"]
    for rule in group["rules"]
]
NAMES = [rule["alert"] for rule in RULES if "alert" in rule]
# declared at /metrics by prometheus_client and by Prometheus itself
FOREIGN = {"up", "process_start_time_seconds"}
AT = '{job="p",instance="i",model="m"}'
OK, FULL = (f'predictors_requests_total{{model="m",reason="{r}"}}' for r in ("ok", "queue_full"))
READY = f"predictors_model_ready{AT}"


def bucket(series: str, bound: str) -> str:
    """One bucket of a histogram."""
    return f'predictors_{series}_bucket{{model="m",le="{bound}"}}'


def times(series: str, fires: str, silent: str, at: str = AT) -> tuple[dict[str, str], ...]:
    """Cases of an alert that looks at one series."""
    return {f"{series}{at}": fires}, {f"{series}{at}": silent}


def slow(series: str, under: str) -> tuple[dict[str, str], ...]:
    """Cases of a percentile: nothing under the target, everything under it."""
    every = {bucket(series, "+Inf"): "0+60x420", bucket(series, "60"): "0+60x420"}
    return (
        {**every, bucket(series, under): "0+0x420"},
        {**every, bucket(series, under): "0+60x420"},
    )


def gpu_memory(state: str) -> str:
    """One state of a device's memory."""
    return f'predictors_gpu_memory_bytes{{device="GPU-a",state="{state}"}}'


STEPS, RUNNING, WAITING = (
    f"predictors_{name}{AT}"
    for name in ("engine_steps_total", "requests_running", "requests_waiting")
)  # fmt: skip
BUSY = {RUNNING: "1+0x420", WAITING: "0+0x420"}
CAPACITY = {f"predictors_queue_capacity{AT}": "64+0x420"}
COMPILED, CAPTURED = (
    f"predictors_{name}_total{AT}" for name in ("recompilations", "graph_captures")
)
PHASES = [
    f'predictors_model_phase_seconds{{job="p",instance="i",model="m",phase="{phase}"}}'
    for phase in ("load", "compile")
]
START = f"process_start_time_seconds{AT}"  # promtool's clock begins at 0
XID = {
    kind: f'predictors_gpu_xid_errors_total{{device="GPU-a",kind="{kind}"}}'
    for kind in metrics.XID_KINDS
}
OVERLOADED = {
    action: f'predictors_overload_active{{job="p",instance="i",action="{action}"}}'
    for action in metrics.OVERLOAD_ACTIONS
}
KEYS = {
    name: f'predictors_keys_{name}{{job="p",instance="i"}}' for name in ("reload_success", "loaded")
}
# series where it fires and where it is silent, one sample a minute, looked at after seven hours
CASES: dict[str, tuple[dict[str, str], ...]] = {
    "ScrapeFailing": (
        {'up{job="p",instance="i"}': "1x400 0x20", READY: "1x400 _x20"},
        {'up{job="p",instance="i"}': "1+0x420", READY: "1+0x420"},
        {'up{job="another",instance="i"}': "0+0x420"},
    ),
    "ModelGone": times("predictors_model_ready", "1x395 _x25", "1+0x420"),
    "ModelNotReadyTooLong": (
        {READY: "0+0x420"},
        {READY: "1+0x420"},
        {READY: "0+0x420", 'predictors_draining{job="p",instance="i"}': "1+0x420"},
    ),
    "DrainingTooLong": times("predictors_draining", "1+0x420", "0x417 1x3"),
    "ProcessRestarted": (
        {READY: "1+0x420", START: "5x410 _x2 9x8"},
        {READY: "1+0x420", START: "5x390 9x30"},
        {READY: "1+0x420", 'process_start_time_seconds{job="another",instance="i"}': "5x410 9x10"},
        {READY: "1x410 _x10", START: "5x410 _x10"},
    ),
    "RestartLoop": (
        {READY: "1+0x420", START: "0+600x420"},
        {READY: "1+0x420", START: "5x400 9x20"},
    ),
    "ErrorBudgetBurnFast": (
        {OK: "0+80x420", FULL: "0+20x420"},
        {OK: "0+95x420", FULL: "0+5x420"},
        {OK: "0+80x420", FULL: "0+20x405 8100x15"},
    ),
    "ErrorBudgetBurnSlow": (
        {OK: "0+90x420", FULL: "0+10x420"},
        {OK: "0+95x420", FULL: "0+5x420"},
    ),
    "QueueSaturated": (
        {WAITING: "60+0x420", **CAPACITY},
        {WAITING: "40+0x420", **CAPACITY},
        {WAITING: "0x417 60x3", **CAPACITY},
    ),
    "HeadOfLineTooOld": times("predictors_queue_oldest_seconds", "61+0x420", "60+0x420"),
    "RejectionsHigh": (
        {OK: "0+90x420", FULL: "0+10x420"},
        {OK: "0+99x420", FULL: "0+1x420"},
    ),
    "FirstImageSlow": slow("time_to_first_image_seconds", "30"),
    "FirstTokenSlow": slow("time_to_first_token_seconds", "2.5"),
    "EngineStalled": (
        {STEPS: "7+0x420", **BUSY},
        {STEPS: "0+9x420", **BUSY},
        {STEPS: "7+0x420", RUNNING: "0+0x420", WAITING: "0+0x420"},
    ),
    "CompilingAfterReady": (
        {COMPILED: "0x415 1x5", CAPTURED: "0+0x420"},
        {COMPILED: "0+0x420", CAPTURED: "0+0x420"},
    ),
    "OutOfMemory": times(
        "predictors_jobs_total", "0x415 1x5", "1+0x420", '{model="m",reason="oom"}'
    ),
    "GpuXidErrors": (
        {XID["device"]: "0x415 1x5", XID["application"]: "0+0x420"},
        {XID["device"]: "1+0x420"},
        {XID["application"]: "0x415 1x5"},
    ),
    "GpuXidApplicationErrors": (
        {XID["application"]: "0x415 1x5", XID["device"]: "0+0x420"},
        {XID["application"]: "1+0x420"},
        {XID["device"]: "0x415 1x5"},
    ),
    "GpuMemoryNearLimit": (
        {gpu_memory("free"): "1+0x420", gpu_memory("total"): "100+0x420"},
        {gpu_memory("free"): "3+0x420", gpu_memory("total"): "100+0x420"},
        {gpu_memory("used"): "99+0x420", gpu_memory("total"): "100+0x420"},
    ),
    "RequestsPoisoned": times(
        "predictors_jobs_total", "0x415 1x5", "1+0x420", '{model="m",reason="poisoned"}'
    ),
    "KvCacheFull": times("predictors_kv_cache_usage_ratio", "0.96+0x420", "0.95+0x420"),
    "ColdStartOverBudget": (
        {PHASES[0]: "601+0x420", START: "21660x420"},
        {PHASES[0]: "599+0x420", PHASES[1]: "599+0x420", START: "21660x420"},
        {PHASES[0]: "601+0x420", START: "21600x420"},  # an hour ago
    ),
    "ServerOverloaded": (
        {OVERLOADED["refuse_large"]: "1+0x420"},
        {OVERLOADED["refuse"]: "0+0x420", OVERLOADED["close"]: "1+0x420"},
    ),
    "CertificateExpiring": (
        {f"predictors_tls_certificate_expiry_timestamp_seconds{AT}": "600000+0x420"},
        {f"predictors_tls_certificate_expiry_timestamp_seconds{AT}": "700000+0x420"},
        {f"predictors_tls_certificate_expiry_timestamp_seconds{AT}": "0+0x420"},  # no TLS
        {f"predictors_c2pa_certificate_expiry_timestamp_seconds{AT}": "700000+0x420"},
    ),
    "CertificateReloadFailing": times("predictors_tls_reload_failing", "1+0x420", "0+0x420"),
    "KeysReloadFailing": (
        {KEYS["reload_success"]: "0+0x420", KEYS["loaded"]: "2+0x420"},
        {KEYS["reload_success"]: "1+0x420", KEYS["loaded"]: "2+0x420"},
        {KEYS["reload_success"]: "0+0x420", KEYS["loaded"]: "0+0x420"},  # no keys
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def promtool() -> str:
    """Debian's."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    return found


def look(name: str, at: str, fires: bool) -> dict[str, Any]:
    """The question at that time: the alert's own series ALERTS is there or is not."""
    own = f'ALERTS{{alertname="Predictors{name}",alertstate="firing"}}'
    expected = [{"labels": f'{{alertname="Predictors{name}"}}', "value": 1}] if fires else []
    return {"expr": f"count by (alertname) ({own})", "eval_time": at, "exp_samples": expected}


def case(
    series: dict[str, str], looks: list[dict[str, Any]], interval: str = "1m"
) -> dict[str, Any]:
    """One test in promtool's words, of series with a sample each `interval`."""
    return {
        "interval": interval,
        "input_series": [{"series": k, "values": v} for k, v in series.items()],
        "promql_expr_test": looks,
    }


def prove(promtool: str, folder: Path, cases: list[dict[str, Any]], evaluation: str = "1m") -> None:
    """Run the shipped rules, evaluated each `evaluation`, over the cases."""
    rules = [str(ALERTS / f"{file}.yaml") for file in ("recording", "alerts")]
    written = folder / "cases.yaml"
    written.write_text(
        json.dumps({"rule_files": rules, "evaluation_interval": evaluation, "tests": cases})
    )
    run = subprocess.run(
        [promtool, "test", "rules", str(written)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_and_stays_silent(name: str, promtool: str, tmp_path: Path) -> None:
    fires, *silent = CASES[name]
    cases = [case(fires, [look(name, "7h", True)])]
    cases += [case(series, [look(name, "7h", False)]) for series in silent]
    prove(promtool, tmp_path, cases)


def seconds(duration: str) -> float:
    """The seconds of a duration as Prometheus writes it: `1m`, `30s`."""
    return float(duration[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[duration[-1]]


def test_a_stalled_engine_fires_before_it_is_restarted(promtool: str, tmp_path: Path) -> None:
    (rule,) = (rule for rule in RULES if rule.get("alert") == "PredictorsEngineStalled")
    (window,) = re.findall(r"\[(\w+)\]", rule["expr"])
    assert seconds(window) + seconds(rule["for"]) < QueueSettings().stall_timeout_s
    # the last step at 10 min; the liveness probe has ended the process 165 s later
    gone = "stale _x40"
    series = {STEPS: f"0+1x40 40x10 {gone}", RUNNING: f"1x51 {gone}", WAITING: f"0x51 {gone}"}
    looks = [
        look("EngineStalled", at, fires)
        for at, fires in {"11m": False, "12m": True, "12m30s": True, "13m": False}.items()
    ]
    prove(promtool, tmp_path, [case(series, looks, interval="15s")], evaluation="30s")


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("ScrapeFailing", {'up{job="p",instance="i"}': "1x280 0x140", READY: "1x280 stale _x139"}),
        ("ModelGone", {READY: "1x280 stale _x139"}),
    ],
)
def test_an_outage_still_fires_after_140_minutes(
    name: str, lost: dict[str, str], promtool: str, tmp_path: Path
) -> None:
    times = {"4h40m": False, "5h": True, "7h": True}
    prove(promtool, tmp_path, [case(lost, [look(name, *at) for at in times.items()])])


def test_a_long_drain_fires_before_it_is_cut() -> None:
    (rule,) = (rule for rule in RULES if rule.get("alert") == "PredictorsDrainingTooLong")
    assert seconds(rule["for"]) < ServerSettings().drain_timeout_s


def test_every_alert_has_cases() -> None:
    assert {f"Predictors{name}" for name in CASES} == set(NAMES)
    assert all(len(cases) >= 2 for cases in CASES.values())


def test_the_rules_are_valid(promtool: str) -> None:
    files = [str(ALERTS / f"{name}.yaml") for name in ("alerts", "recording")]
    run = subprocess.run([promtool, "check", "rules", *files], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_alert_says_how_bad_it_is_what_is_wrong_and_what_to_do() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    anchors = {title.lower() for title in re.findall(r"^## (\w+)$", page, re.MULTILINE)}
    for rule in RULES:
        if "alert" in rule:
            assert rule["labels"]["severity"] in {"critical", "warning", "info"}
            said = rule["annotations"]
            assert said["summary"]
            assert said["description"]
            path, _, anchor = said["runbook_url"].partition("#")
            assert (path, anchor in anchors) == ("docs/operations.md", True), rule["alert"]


def known() -> set[str]:
    """Every name that a scrape can have, and those that are recorded."""
    names = {rule["record"] for rule in RULES if "record" in rule} | FOREIGN
    for series in vars(metrics).values():
        if isinstance(series, MetricWrapperBase):
            parts = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
            names |= {series._name + part for part in parts.get(series._type, ("",))}
    return names


def test_no_rule_names_a_metric_that_does_not_exist() -> None:
    pattern = r"\b(?:predictors[_:][\w:]+|process_\w+|up(?= ==))"
    named = {name for rule in RULES for name in re.findall(pattern, rule["expr"])}
    assert named - known() == set()
    assert len(named) > 20


def test_a_latency_target_is_a_bound_of_its_buckets() -> None:
    chosen = yaml.safe_load((ALERTS / "values.yaml").read_text())["alerts"]
    assert chosen["FirstImageSlow"]["above"] in metrics.IMG
    assert chosen["FirstTokenSlow"]["above"] in metrics.TTFT
