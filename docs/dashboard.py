# ruff: noqa: E501 - one panel, one line
"""Writes charts/predictors/dashboards/predictors.json: one Grafana dashboard. Knows no threshold.

`python docs/dashboard.py` writes the file, `--check` says whether it is current.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).resolve().parents[1] / "charts/predictors/dashboards/predictors.json"
VARIABLES = ("namespace", "isvc", "model", "pod")
PICK = ",".join(f'{name}=~"${name}"' for name in VARIABLES)
BAD = "queue_full|deadline|not_ready|draining|oom|poisoned|engine_failed|internal"


def of(series: str, *more: str) -> str:
    """The chosen samples of a series."""
    return f"predictors_{series}{{{','.join((PICK, *more))}}}"


def gpu(series: str) -> str:
    """The same of the GPU, which all models of a pod share."""
    chosen = ",".join(pick for pick in PICK.split(",") if not pick.startswith("model="))
    return f"predictors_gpu_{series}{{{chosen}}}"


def rate(series: str, by: str, *more: str) -> str:
    """Per second, summed."""
    return f"sum by ({by}) (rate({of(series, *more)}[$__rate_interval]))"


def p95(series: str, by: str = "model") -> str:
    """The 95th percentile."""
    return f"histogram_quantile(0.95, {rate(f'{series}_bucket', f'le, {by}')})"


class Panel(NamedTuple):
    """One graph; `also` are further lines: (expression, legend)."""

    title: str
    unit: str
    expression: str
    description: str
    legend: str = "{{model}}"
    also: tuple[tuple[str, str], ...] = ()


ERRORS = rate("requests_total", "model", f'reason=~"{BAD}"')
COUNTED = rate("requests_total", "model", f'reason=~"ok|{BAD}"')
EACH = "{{pod}} {{model}}"
ROWS: dict[str, list[Panel]] = {
    "SLO and error budget": [
        Panel("Failed by our fault", "percentunit", f"{ERRORS} / {COUNTED}", "Over its objective the error budget shrinks."),
        Panel("Ready", "none", f"sum by (model) ({of('model_ready')})", "Processes whose promised shapes are warm."),
    ],
    "Traffic": [
        Panel("Requests by outcome", "reqps", rate("requests_total", "model, reason"), "Answered requests.", "{{model}} {{reason}}"),
        Panel("Requests by protocol", "reqps", rate("requests_total", "model, protocol"), "V2 over REST and gRPC, OpenAI.", "{{model}} {{protocol}}"),
    ],
    "Saturation": [
        Panel("Queue", "percentunit", f"{of('requests_waiting')} / ({of('queue_capacity')} > 0)", "Share of the queue that is taken; when it is full and no slot is free the next request is refused. Who is about to get a free slot counts too: for a moment it may be over 1.", EACH),
        Panel("Oldest waiting", "s", of("queue_oldest_seconds"), "Age of the head of the queue.", EACH),
        Panel("Jobs per pass", "none", f"{rate('batch_size_sum', 'model')} / {rate('batch_size_count', 'model')}", "How many jobs share a pass."),
    ],
    "Latency": [
        Panel("Request, p95", "s", p95("request_duration_seconds", "model, outcome"), "From head to end of the answer.", "{{model}} {{outcome}}"),
        Panel("Waiting, p95", "s", p95("queue_duration_seconds"), "Time in the admission queue."),
        Panel("Stage, p95", "s", p95("stage_duration_seconds", "model, stage"), "Where a request spends its time.", "{{model}} {{stage}}"),
    ],
    "FLUX": [
        Panel("Pictures by tier", "ops", rate("images_generated_total", "model, tier"), "Pictures drawn per second.", "{{model}} {{tier}}"),
        Panel("Denoise step, p95", "s", p95("denoise_step_duration_seconds", "model, resolution"), "By class of size.", "{{model}} {{resolution}}"),
        Panel("Picture, p95", "s", p95("time_to_first_image_seconds"), "From submission to the picture."),
    ],
    "VLM": [
        Panel("First token, p95", "s", p95("time_to_first_token_seconds"), "From submission to the first token."),
        Panel("Between tokens, p95", "s", p95("inter_token_latency_seconds"), "What a reader of a stream sees."),
        Panel("Tokens generated", "ops", rate("generation_tokens_total", "model"), "Tokens per second."),
        Panel("KV pages", "percentunit", of("kv_cache_usage_ratio"), "Share of the pages that is reserved.", EACH),
    ],
    "GPU": [
        Panel("Memory", "bytes", gpu("memory_bytes"), "Allocated, reserved and peak by this process; used, free and total of the card or slice by its driver.", "{{pod}} {{state}}"),
        Panel("Utilisation", "percentunit", gpu("utilization_ratio"), "Share of time in which a kernel ran, of any process.", "{{pod}}"),
        Panel("Temperature", "celsius", gpu("temperature_celsius"), "The driver slows a hot card down.", "{{pod}}"),
        Panel("Power", "watt", gpu("power_watts"), "At its limit the card slows down.", "{{pod}}", ((gpu("power_limit_watts"), "{{pod}} limit"),)),
        Panel("XID errors", "none", f"increase({gpu('xid_errors_total')}[$__range])", "What the driver reports of the card; the log has the numbers. Must stay 0.", "{{pod}} {{kind}}"),
    ],
    "Compile and capture": [
        Panel("Compiled after ready", "none", f"increase({of('recompilations_total')}[$__range])", "Must stay 0.", EACH),
        Panel("Captured after ready", "none", f"increase({of('graph_captures_total')}[$__range])", "Must stay 0.", EACH),
    ],
    "Lifecycle": [
        Panel("Start by phase", "s", of("model_phase_seconds"), "Last load and warm-up; capture and compile are parts.", "{{pod}} {{model}} {{phase}}"),
        Panel("Cache look-ups", "ops", rate("cache_requests_total", "model, cache, result"), "Hits spare an encoder.", "{{model}} {{cache}} {{result}}"),
    ],
    "Per pod": [
        Panel("Running", "none", of("requests_running"), "Jobs that hold a slot.", EACH),
        Panel("Steps", "ops", rate("engine_steps_total", "pod, instance, model"), "0 with work to do is a stall.", EACH),
    ],
}  # fmt: skip


def panels() -> list[dict[str, Any]]:
    """Rows and their panels, placed."""
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


def text() -> str:
    """The file. A label that the scrape does not set matches `.*`, so every variable may be All."""
    variables: list[dict[str, Any]] = [{"name": "datasource", "type": "datasource", "query": "prometheus"}]  # fmt: skip
    variables += [{
            "name": name, "type": "query", "query": f"label_values(predictors_model_ready, {name})",
            "datasource": {"type": "prometheus", "uid": "${datasource}"}, "refresh": 2,
            "includeAll": True, "multi": True, "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        } for name in VARIABLES]  # fmt: skip
    board = {
        "uid": "predictors", "title": "Vision Predictors", "schemaVersion": 39, "graphTooltip": 1,
        "editable": False, "time": {"from": "now-1h", "to": "now"}, "refresh": "30s",
        "templating": {"list": variables}, "panels": panels(),
    }  # fmt: skip
    return json.dumps(board, indent=1) + "\n"


def main() -> int:
    """Write or check the file; returns the exit code."""
    if "--check" in sys.argv[1:]:
        return 0 if FILE.exists() and FILE.read_text(encoding="utf-8") == text() else 1
    FILE.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
