# ruff: noqa: E501 - one panel, one line
"""Generates charts/predictors/dashboards/predictors.json: one Grafana dashboard. Its objective is that
of charts/predictors/alerts/values.yaml, and can be changed in a text box of the dashboard.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml

FILE = Path(__file__).resolve().parents[1] / "charts/predictors/dashboards/predictors.json"
OBJECTIVE = str(
    yaml.safe_load((FILE.parents[1] / "alerts/values.yaml").read_text())["slo"]["objective"]
)
VARIABLES = ("namespace", "isvc", "model", "pod")
PICK = ",".join(f'{name}=~"${name}"' for name in VARIABLES)
MAY_FAIL = "(1 - $objective)"
BAD = "queue_full|overloaded|deadline|not_ready|draining|oom|poisoned|engine_failed|internal"


def of(series: str, *more: str) -> str:
    """A series with the dashboard's selection."""
    return f"predictors_{series}{{{','.join((PICK, *more))}}}"


def without(label: str) -> str:
    """The selection for series without this label."""
    return ",".join(pick for pick in PICK.split(",") if not pick.startswith(f"{label}="))


def shared(series: str) -> str:
    """A series of the whole pod."""
    return f"{series}{{{without('model')}}}"


def gpu(series: str) -> str:
    """A series of the GPU."""
    return shared(f"predictors_gpu_{series}")


def burn(window: str) -> str:
    """The recorded share of failures of all pods, divided by the share that may fail."""
    return f"predictors:slo_errors:ratio_rate{window}{{{without('pod')}}} / {MAY_FAIL}"


def rate(series: str, by: str, *more: str) -> str:
    """The rate per second, summed by labels."""
    return f"sum by ({by}) (rate({of(series, *more)}[$__rate_interval]))"


def p95(series: str, by: str = "model") -> str:
    return f"histogram_quantile(0.95, {rate(f'{series}_bucket', f'le, {by}')})"


class Panel(NamedTuple):
    """A graph. `also` has further lines as (expression, legend)."""

    title: str
    unit: str
    expression: str
    description: str
    legend: str = "{{model}}"
    also: tuple[tuple[str, str], ...] = ()


ERRORS = rate("requests_total", "model", f'reason=~"{BAD}"')
COUNTED = rate("requests_total", "model", f'reason=~"ok|{BAD}"')
BAD_SO_FAR, SO_FAR = (
    text.replace("rate(", "increase(").replace("$__rate_interval", "$__range")
    for text in (ERRORS, COUNTED)
)
SCRAPED = "job, namespace, pod, instance"
STARTS = f"changes({shared('process_start_time_seconds')}[$__range]) and on ({SCRAPED}) {shared('predictors_draining')}"
EACH = "{{pod}} {{model}}"
ROWS: dict[str, list[Panel]] = {
    "SLO and error budget": [
        Panel("Failed by our fault", "percentunit", f"{ERRORS} / {COUNTED}", "Above 1 minus the objective the error budget runs out early."),
        Panel("Error budget left", "percentunit", f"clamp_min(1 - {BAD_SO_FAR} / {SO_FAR} / {MAY_FAIL}, 0)", "Share of the allowed failures that is left, for the objective above and the time range of the dashboard. Choose 30 days for a month's budget."),
        Panel("Burn rate", "none", burn("5m"), "Speed at which the error budget is spent, over 5 minutes, 1 hour and 6 hours; at 1 it lasts exactly. From the recording rules, for all pods together.", "{{model}} 5m", ((burn("1h"), "{{model}} 1h"), (burn("6h"), "{{model}} 6h"))),
        Panel("Ready", "none", f"sum by (model) ({of('model_ready')} * on ({SCRAPED}) group_left () (1 - {shared('predictors_draining')}))", "Processes whose promised shapes are warm and that do not drain."),
    ],
    "Traffic": [
        Panel("Requests by outcome", "reqps", rate("requests_total", "model, reason"), "Answered requests.", "{{model}} {{reason}}"),
        Panel("Requests by protocol", "reqps", rate("requests_total", "model, protocol"), "V2 over REST and gRPC, OpenAI.", "{{model}} {{protocol}}"),
    ],
    "Saturation": [
        Panel("Queue", "percentunit", f"{of('requests_waiting')} / ({of('queue_capacity')} > 0)", "Share of the queue that is used. If it is full and no slot is free, the next request is refused. Jobs that are about to get a free slot count too, so it may be above 1 for a moment.", EACH),
        Panel("Oldest waiting", "s", of("queue_oldest_seconds"), "Age of the head of the queue.", EACH),
        Panel("Overload", "percentunit", shared("predictors_overload_pressure"), "How near the pod is to its limits, and 1 for the actions that are on: close connections with each response, refuse new requests (large ones only, or all).", "{{pod}} {{monitor}}", ((shared("predictors_overload_active"), "{{pod}} {{action}}"),)),
        Panel("Jobs per pass", "none", f"{rate('batch_size_sum', 'model')} / {rate('batch_size_count', 'model')}", "How many jobs share a pass."),
    ],
    "Latency": [
        Panel("Request, p95", "s", p95("request_duration_seconds", "model, outcome"), "From head to end of the answer.", "{{model}} {{outcome}}"),
        Panel("Waiting, p95", "s", p95("queue_duration_seconds"), "Time in the admission queue."),
        Panel("Stage, p95", "s", p95("stage_duration_seconds", "model, stage"), "Where a request spends its time.", "{{model}} {{stage}}"),
    ],
    "FLUX": [
        Panel("Pictures by tier", "suffix:pictures/s", rate("images_generated_total", "model, tier"), "Pictures drawn per second.", "{{model}} {{tier}}"),
        Panel("Denoise step, p95", "s", p95("denoise_step_duration_seconds", "model, resolution"), "By class of size.", "{{model}} {{resolution}}"),
        Panel("Picture, p95", "s", p95("time_to_first_image_seconds"), "From submission to the picture."),
    ],
    "VLM": [
        Panel("First token, p95", "s", p95("time_to_first_token_seconds"), "From submission to the first token."),
        Panel("Between tokens, p95", "s", p95("inter_token_latency_seconds"), "Time between two tokens of a stream."),
        Panel("Tokens generated", "suffix:tokens/s", rate("generation_tokens_total", "model"), "Tokens per second."),
        Panel("KV pages", "percentunit", of("kv_cache_usage_ratio"), "Share of the pages that is reserved.", EACH),
    ],
    "GPU": [
        Panel("Memory", "bytes", gpu("memory_bytes"), "Allocated, reserved and peak by this process; used, free and total of the card or slice by its driver.", "{{pod}} {{state}}"),
        Panel("Utilisation", "percentunit", gpu("utilization_ratio"), "Share of time in which a kernel ran, of any process.", "{{pod}}"),
        Panel("Temperature", "celsius", gpu("temperature_celsius"), "The driver slows a hot card down.", "{{pod}}"),
        Panel("Power", "watt", gpu("power_watts"), "At its limit the card slows down.", "{{pod}}", ((gpu("power_limit_watts"), "{{pod}} limit"),)),
        Panel("Energy per answer, p95", "joule", p95("request_energy_joules"), "Engine seconds of a picture or a text at the mean power of half seconds. Absent on slices.", "{{model}}"),
        Panel("Power by model", "watt", rate("energy_joules_total", "model"), "Energy that jobs took, and below it the whole card's, idle time included.", "{{model}}", ((f"rate({gpu('energy_joules_total')}[$__rate_interval])", "{{pod}} card"),)),
        Panel("XID errors", "none", f"increase({gpu('xid_errors_total')}[$__range])", "Errors that the driver reports for the card. The log has the numbers. Must stay 0.", "{{pod}} {{kind}}"),
    ],
    "Compile and capture": [
        Panel("Compiled or captured after ready", "none", f"increase({of('recompilations_total')}[$__range])", "Kernels and CUDA graphs; must stay 0.", f"{EACH} compiled", ((f"increase({of('graph_captures_total')}[$__range])", f"{EACH} captured"),)),
    ],
    "Lifecycle": [
        Panel("Start by phase", "s", of("model_phase_seconds"), "Last load and warm-up; capture and compile are parts.", "{{pod}} {{model}} {{phase}}"),
        Panel("Cache look-ups", "suffix:look-ups/s", rate("cache_requests_total", "model, cache, result"), "A hit saves a run of an encoder.", "{{model}} {{cache}} {{result}}"),
    ],
    "Per pod": [
        Panel("Failures", "none", f"increase({of('engine_failures_total')}[$__range])", "Engines that failed (the process ends then), restarts of the process, and steps that were split to find a failing job or because memory was short.", f"{EACH} engine", ((STARTS, "{{pod}} restarts"), (f"increase({of('batch_splits_total')}[$__range])", f"{EACH} splits {{{{reason}}}}"))),
        Panel("Running", "none", of("requests_running"), "Jobs that hold a slot, and all requests in progress in the pod.", EACH, ((shared("predictors_requests_in_flight"), "{{pod}} in flight"),)),
        Panel("Steps", "suffix:steps/s", rate("engine_steps_total", "pod, instance, model"), "0 with work to do is a stall.", EACH),
    ],
}  # fmt: skip


def panels() -> list[dict[str, Any]]:
    """Rows and panels with their positions."""
    found: list[dict[str, Any]] = []
    y = 0
    for row, entries in ROWS.items():
        place = {"x": 0, "y": y, "w": 24, "h": 1}
        found.append(
            {"type": "row", "title": row, "gridPos": place, "collapsed": False, "panels": []}
        )
        width = 24 // len(entries)
        for i, panel in enumerate(entries):
            lines = ((panel.expression, panel.legend), *panel.also)
            found.append({
                "type": "timeseries", "title": panel.title, "description": panel.description,
                "datasource": {"type": "prometheus", "uid": "${datasource}"},
                "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
                "gridPos": {"x": i * width, "y": y + 1, "w": width, "h": 8},
                "targets": [
                    {"refId": name, "expr": expression, "legendFormat": legend}
                    for name, (expression, legend) in zip("ABC", lines, strict=False)
                ],
            })  # fmt: skip
        y += 9
    return [{"id": i, **panel} for i, panel in enumerate(found, 1)]


def files() -> dict[Path, str]:
    """The dashboard, by its path. A label that the scrape does not set matches `.*`, so every
    variable may be All."""
    variables: list[dict[str, Any]] = [{"name": "datasource", "type": "datasource", "query": "prometheus"}]  # fmt: skip
    variables += [{
            "name": name, "type": "query", "query": f"label_values(predictors_model_ready, {name})",
            "datasource": {"type": "prometheus", "uid": "${datasource}"}, "refresh": 2,
            "includeAll": True, "multi": True, "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        } for name in VARIABLES]  # fmt: skip
    variables += [{
        "name": "objective", "type": "textbox", "query": OBJECTIVE,
        "current": {"text": OBJECTIVE, "value": OBJECTIVE},
        "description": "Share of requests that the server must not fail",
    }]  # fmt: skip
    board = {
        "uid": "predictors", "title": "Vision Predictors", "schemaVersion": 39, "graphTooltip": 1,
        "editable": False, "time": {"from": "now-1h", "to": "now"}, "refresh": "30s",
        "templating": {"list": variables}, "panels": panels(),
    }  # fmt: skip
    return {FILE: json.dumps(board, indent=1) + "\n"}
