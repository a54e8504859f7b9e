"""Generates charts/predictors/alerts/{alerts,recording,template}.yaml: Prometheus rules. The
thresholds are in values.yaml beside them. The template has the alerts without numbers; the chart
fills in those of its own values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[1] / "charts/predictors/alerts"
HEAD = "# Written by `make docs` from tools/alerts.py and values.yaml; edit those.\n"
BY = "namespace, isvc, model"
POD = f"job, {BY}, pod, instance"
OURS = "ok|queue_full|overloaded|deadline|not_ready|draining|oom|poisoned|engine_failed|internal"
"""Outcomes that count for the objective. Invalid requests and cancelled ones do not."""


def errors(window: str) -> str:
    """The share of requests that the server failed, per model."""
    bad = f'predictors_requests_total{{reason=~"{OURS.removeprefix("ok|")}"}}[{window}]'
    every = f'predictors_requests_total{{reason=~"{OURS}"}}[{window}]'
    return f"sum by ({BY}) (rate({bad})) / sum by ({BY}) (rate({every}))"


def burns(long: str, short: str) -> str:
    """The error budget is spent too fast, over a long and a short window."""
    limit = "{above} * (1 - {objective})"
    rules = [f"predictors:slo_errors:ratio_rate{window}" for window in (long, short)]
    return f"{rules[0]} > {limit} and {rules[1]} > {limit}"


def slow(series: str) -> str:
    """The 95th percentile of a histogram is above the target."""
    rate = f"rate(predictors_{series}_bucket[5m])"
    return f"histogram_quantile(0.95, sum by (le, {BY}) ({rate})) > {{above}}"


def grew(*series: str) -> str:
    """A counter that should not move did so within a quarter of an hour."""
    return " + ".join(f"increase(predictors_{name}[15m])" for name in series) + " > 0"


SERVES = "count by (job, instance) (last_over_time(predictors_model_ready[1d]))"
GPU_FREE, GPU_TOTAL = (
    f'predictors_gpu_memory_bytes{{{{state="{state}"}}}}' for state in ("free", "total")
)
BUSY = "predictors_requests_running + predictors_requests_waiting > 0"

# name: expression, summary, description
ALERTS: dict[str, tuple[str, str, str]] = {
    "ScrapeFailing": (
        f"up == 0 and on (job, instance) {SERVES}",
        "{{ $labels.instance }} cannot be scraped",
        "It served a model within the last day, and Prometheus can no longer reach it.",
    ),
    "ModelGone": (
        f"max by ({BY}) (last_over_time(predictors_model_ready[1d])) "
        f"unless max by ({BY}) (predictors_model_ready)",
        "No process serves {{ $labels.model }} any more",
        "Its series ended within the last day. Expected if the service scales to zero.",
    ),
    "ModelNotReadyTooLong": (
        "predictors_model_ready == 0 unless on (job, instance) predictors_draining == 1",
        "{{ $labels.model }} on {{ $labels.instance }} does not become ready",
        "It runs, but loading and warm-up have not finished.",
    ),
    "DrainingTooLong": (
        "predictors_draining == 1",
        "{{ $labels.instance }} does not end",
        "It is shutting down and still finishes accepted work.",
    ),
    "ProcessRestarted": (
        f"changes(process_start_time_seconds[15m]) > 0 and on (job, instance) {SERVES}",
        "{{ $labels.instance }} died and started again in its place",
        "What was in flight is lost. A failed engine ends its process before the next scrape.",
    ),
    "RestartLoop": (
        f"changes(process_start_time_seconds[1h]) >= {{above}} and on (job, instance) {SERVES}",
        "{{ $labels.instance }} starts again and again",
        "{{ $value }} starts within the last hour.",
    ),
    "ErrorBudgetBurnFast": (
        burns("1h", "5m"),
        "{{ $labels.model }} fails {{ $value | humanizePercentage }} of its requests",
        "At this rate the error budget of 30 days is gone in two days.",
    ),
    "ErrorBudgetBurnSlow": (
        burns("6h", "30m"),
        "{{ $labels.model }} fails {{ $value | humanizePercentage }} of its requests",
        "At this rate the error budget of 30 days is gone in five days.",
    ),
    "QueueSaturated": (
        "predictors_requests_waiting / (predictors_queue_capacity > 0) > {above}",
        "The queue of {{ $labels.model }} is {{ $value | humanizePercentage }} full",
        "Requests wait on {{ $labels.instance }}; when it is full the next one is refused.",
    ),
    "HeadOfLineTooOld": (
        "predictors_queue_oldest_seconds > {above}",
        "A request to {{ $labels.model }} waits for {{ $value | humanizeDuration }}",
        "The oldest request in the queue of {{ $labels.instance }} does not get a slot.",
    ),
    "RejectionsHigh": (
        f'sum by ({BY}) (rate(predictors_requests_total{{{{reason="queue_full"}}}}[5m])) '
        f"/ sum by ({BY}) (rate(predictors_requests_total[5m])) > {{above}}",
        "{{ $labels.model }} refuses {{ $value | humanizePercentage }} of its requests",
        "The queue is full; callers get 503 (or 429) with Retry-After.",
    ),
    "FirstImageSlow": (
        slow("time_to_first_image_seconds"),
        "Pictures of {{ $labels.model }} take {{ $value | humanizeDuration }} (p95)",
        "From submission to the picture, waiting included.",
    ),
    "FirstTokenSlow": (
        slow("time_to_first_token_seconds"),
        "The first token of {{ $labels.model }} takes {{ $value | humanizeDuration }} (p95)",
        "From submission to the first token, waiting included.",
    ),
    "EngineStalled": (
        f"increase(predictors_engine_steps_total[1m]) == 0 and ({BUSY})",
        "The engine of {{ $labels.model }} has work and takes no step",
        "No step on {{ $labels.instance }} for a minute although requests run or wait.",
    ),
    "CompilingAfterReady": (
        grew("recompilations_total", "graph_captures_total"),
        "{{ $labels.model }} compiles although it was ready",
        "A shape that was not warmed is compiled or captured while callers wait.",
    ),
    "OutOfMemory": (
        grew('jobs_total{{reason="oom"}}'),
        "{{ $labels.model }} ran out of GPU memory",
        "Requests on {{ $labels.instance }} failed because memory was short.",
    ),
    "GpuXidErrors": (
        grew('gpu_xid_errors_total{{kind="device"}}'),
        "The driver reports errors (XID) of {{ $labels.device }}: memory, bus or driver",
        "On {{ $labels.instance }}; the numbers are in its log.",
    ),
    "GpuXidApplicationErrors": (
        grew('gpu_xid_errors_total{{kind="application"}}'),
        "The driver reports that something that ran on {{ $labels.device }} was wrong (XID)",
        "On {{ $labels.instance }}; the numbers are in its log. The card itself is not at fault.",
    ),
    "GpuMemoryNearLimit": (
        f"1 - {GPU_FREE} / ignoring (state) {GPU_TOTAL} > {{above}}",
        "{{ $value | humanizePercentage }} of the memory of {{ $labels.device }} is taken",
        "By {{ $labels.instance }} and other processes. The next allocation may fail.",
    ),
    "RequestsPoisoned": (
        grew('jobs_total{{reason="poisoned"}}'),
        "A request breaks steps of {{ $labels.model }}",
        "Steps were split until the failing request was found. Only that one failed.",
    ),
    "KvCacheFull": (
        "predictors_kv_cache_usage_ratio > {above}",
        "{{ $value | humanizePercentage }} of the KV pages of {{ $labels.model }} are reserved",
        "Sequences wait for pages, not for slots.",
    ),
    "ColdStartOverBudget": (
        f'sum by ({POD}) (predictors_model_phase_seconds{{{{phase=~"load|warmup"}}}}) > {{above}}'
        " and on (job, instance) time() - process_start_time_seconds < 3600",
        "{{ $labels.model }} took {{ $value | humanizeDuration }} to start",
        "A scale-up or a restart of {{ $labels.instance }} costs this much. It fires for an hour.",
    ),
    "ServerOverloaded": (
        "max by (job, namespace, pod, instance) "
        '(predictors_overload_active{{action=~"refuse.*"}}) == 1',
        "{{ $labels.instance }} refuses requests to protect itself",
        "It is near a limit: memory, connections, bodies in flight, event loop or preparation.",
    ),
    "CertificateExpiring": (
        "min by (job, namespace, pod, instance) (label_replace("
        'predictors_tls_certificate_expiry_timestamp_seconds > 0, "of", "tls", "", "")'
        " or label_replace("
        'predictors_c2pa_certificate_expiry_timestamp_seconds > 0, "of", "c2pa", "", "")'
        ") < time() + {above}",
        "A certificate of {{ $labels.instance }} expires at {{ $value | humanizeTimestamp }}",
        "From then on clients refuse to connect (TLS), or pictures fail, unsigned (C2PA).",
    ),
    "CertificateReloadFailing": (
        "predictors_tls_reload_failing == 1",
        "{{ $labels.instance }} can't use its new TLS files",
        "It goes on with older content, until that expires.",
    ),
    "KeysReloadFailing": (
        "predictors_keys_reload_success == 0 and predictors_keys_loaded > 0",
        "{{ $labels.instance }} can't use its file of API keys",
        "The keys read before stay in use, those that were removed since as well.",
    ),
}

VLM = (
    "and on (job, instance, model) predictors_kv_cache_usage_ratio"  # the models that have KV pages
)
AS_VLLM = {  # vLLM's name: ours. A histogram stands for its three series
    "num_requests_running": f"predictors_requests_running {VLM}",
    "num_requests_waiting": f"predictors_requests_waiting {VLM}",
    "kv_cache_usage_perc": "predictors_kv_cache_usage_ratio",
    "prompt_tokens_total": "predictors_prompt_tokens_total",
    "generation_tokens_total": "predictors_generation_tokens_total",
    "request_success_total": f'predictors_jobs_total{{reason="ok"}} {VLM}',
}
HISTOGRAMS_AS_VLLM = {
    "time_to_first_token_seconds": "predictors_time_to_first_token_seconds{part}",
    "inter_token_latency_seconds": "predictors_inter_token_latency_seconds{part}",
    "e2e_request_latency_seconds": "sum without (protocol, outcome) "
    f"(predictors_request_duration_seconds{{part}}) {VLM}",
    "request_queue_time_seconds": f"predictors_queue_duration_seconds{{part}} {VLM}",
    "request_prefill_time_seconds": 'predictors_stage_duration_seconds{part}{{stage="prefill"}}',
    "request_decode_time_seconds": 'predictors_stage_duration_seconds{part}{{stage="decode"}}',
    "request_prompt_tokens": "predictors_request_prompt_tokens{part}",
    "request_generation_tokens": "predictors_request_generation_tokens{part}",
}


def shipped_values() -> dict[str, Any]:
    """Thresholds, durations and severities of values.yaml."""
    found: dict[str, Any] = yaml.safe_load((FOLDER / "values.yaml").read_text(encoding="utf-8"))
    return found


def alert(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """One alert with its numbers filled in."""
    chosen = values["alerts"][name]
    expression, summary, description = ALERTS[name]
    numbers = {"above": chosen.get("above"), "objective": values["slo"]["objective"]}
    return {
        "alert": f"Predictors{name}",
        "expr": expression.format(**numbers),
        "for": chosen["for"],
        "labels": {"severity": chosen["severity"]},
        "annotations": {
            "summary": summary,
            "description": description,
            "runbook_url": f"{values['runbooks']}#{name.lower()}",
        },
    }


def as_vllm() -> list[dict[str, str]]:
    """Recording rules for the chat models' series under vLLM's names, with its label `model_name`.
    vLLM has no GPU series, so there are none for ours."""
    named = dict(AS_VLLM)
    for name, ours in HISTOGRAMS_AS_VLLM.items():
        named |= {f"{name}{part}": ours.format(part=part) for part in ("_bucket", "_sum", "_count")}
    rename = 'label_replace({}, "model_name", "$1", "model", "(.*)")'
    return [{"record": f"vllm:{name}", "expr": rename.format(ours)} for name, ours in named.items()]


def template() -> dict[str, Any]:
    """Every alert with <above> and <objective> in place of numbers."""
    return {
        name: {
            "expr": expression.format(above="<above>", objective="<objective>"),
            "summary": summary,
            "description": description,
        }
        for name, (expression, summary, description) in ALERTS.items()
    }


def dumped(content: dict[str, Any]) -> str:
    return HEAD + yaml.safe_dump(content, sort_keys=False, width=1000)


def rules(values: Mapping[str, Any]) -> dict[str, str]:
    """Text of the files with rules, by name, for these thresholds."""
    windows = ("5m", "30m", "1h", "6h")
    slo = [
        {"record": f"predictors:slo_errors:ratio_rate{window}", "expr": errors(window)}
        for window in windows
    ]
    groups = {
        "recording": {"predictors-slo": slo, "predictors-as-vllm": as_vllm()},
        "alerts": {"predictors-alerts": [alert(name, values) for name in ALERTS]},
    }
    return {
        f"{file}.yaml": dumped(
            {"groups": [{"name": name, "rules": each} for name, each in found.items()]}
        )
        for file, found in groups.items()
    }


def files() -> dict[Path, str]:
    """Text of each file, by its path."""
    texts = rules(shipped_values()) | {"template.yaml": dumped({"alerts": template()})}
    return {FOLDER / name: text for name, text in texts.items()}
