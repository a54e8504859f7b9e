# ruff: noqa: E501 - one panel, one line
"""Writes charts/predictors/dashboards/predictors.json: one Grafana dashboard. Knows no threshold.

`python docs/dashboard.py` writes the file, `--check` says whether it is current.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parents[1] / "charts/predictors/dashboards/predictors.json"
VARIABLES = ("namespace", "isvc", "model", "pod")
PICK = ",".join(f'{name}=~"${name}"' for name in VARIABLES)
BAD = "queue_full|deadline|not_ready|draining|oom|poisoned|engine_failed|internal"


def of(series: str, *more: str) -> str:
    """The chosen samples of a series."""
    return f"predictors_{series}{{{','.join((PICK, *more))}}}"


def rate(series: str, by: str, *more: str) -> str:
    """Per second, summed."""
    return f"sum by ({by}) (rate({of(series, *more)}[$__rate_interval]))"


def p95(series: str, by: str = "model") -> str:
    """The 95th percentile."""
    return f"histogram_quantile(0.95, {rate(f'{series}_bucket', f'le, {by}')})"


ERRORS = rate("requests_total", "model", f'reason=~"{BAD}"')
COUNTED = rate("requests_total", "model", f'reason=~"ok|{BAD}"')
# row: (title, unit, expression, description)
ROWS: dict[str, list[tuple[str, str, str, str]]] = {
    "SLO and error budget": [
        ("Failed by our fault", "percentunit", f"{ERRORS} / {COUNTED}", "Over its objective the error budget shrinks."),
        ("Ready", "none", f"sum by (model) ({of('model_ready')})", "Processes whose promised shapes are warm."),
    ],
    "Traffic": [
        ("Requests by outcome", "reqps", rate("requests_total", "model, reason"), "Answered requests."),
        ("Requests by protocol", "reqps", rate("requests_total", "model, protocol"), "V2 over REST and gRPC, OpenAI."),
    ],
    "Saturation": [
        ("Queue", "percentunit", f"{of('requests_waiting')} / ({of('queue_capacity')} > 0)", "Share of the queue that is taken; at 1 the next request is refused."),
        ("Oldest waiting", "s", of("queue_oldest_seconds"), "Age of the head of the queue."),
        ("Jobs per pass", "none", f"{rate('batch_size_sum', 'model')} / {rate('batch_size_count', 'model')}", "How many jobs share a pass."),
    ],
    "Latency": [
        ("Request, p95", "s", p95("request_duration_seconds", "model, outcome"), "From head to end of the answer."),
        ("Waiting, p95", "s", p95("queue_duration_seconds"), "Time in the admission queue."),
        ("Stage, p95", "s", p95("stage_duration_seconds", "model, stage"), "Where a request spends its time."),
    ],
    "FLUX": [
        ("Pictures by tier", "ops", rate("images_generated_total", "model, tier"), "Pictures drawn per second."),
        ("Denoise step, p95", "s", p95("denoise_step_duration_seconds", "model, resolution"), "By class of size."),
        ("Picture, p95", "s", p95("time_to_first_image_seconds"), "From submission to the picture."),
    ],
    "VLM": [
        ("First token, p95", "s", p95("time_to_first_token_seconds"), "From submission to the first token."),
        ("Between tokens, p95", "s", p95("inter_token_latency_seconds"), "What a reader of a stream sees."),
        ("Tokens generated", "ops", rate("generation_tokens_total", "model"), "Tokens per second."),
        ("KV pages", "percentunit", of("kv_cache_usage_ratio"), "Share of the pages that is reserved."),
    ],
    "Compile and capture": [
        ("Compiled after ready", "none", f"increase({of('recompilations_total')}[$__range])", "Must stay 0."),
        ("Captured after ready", "none", f"increase({of('graph_captures_total')}[$__range])", "Must stay 0."),
    ],
    "Lifecycle": [
        ("Start by phase", "s", of("model_phase_seconds"), "Last load and warm-up; capture and compile are parts."),
        ("Cache look-ups", "ops", rate("cache_requests_total", "model, cache, result"), "Hits spare an encoder."),
    ],
    "Per pod": [
        ("Running", "none", of("requests_running"), "Jobs that hold a slot."),
        ("Steps", "ops", rate("engine_steps_total", "pod, instance, model"), "0 with work to do is a stall."),
    ],
}  # fmt: skip


def panels() -> list[dict[str, Any]]:
    """Rows and their panels, placed."""
    found: list[dict[str, Any]] = []
    y = 0
    for row, entries in ROWS.items():
        found.append({"type": "row", "title": row, "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        width = 24 // len(entries)
        for i, (title, unit, expression, description) in enumerate(entries):
            found.append({
                "type": "timeseries", "title": title, "description": description,
                "datasource": {"type": "prometheus", "uid": "${datasource}"},
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "gridPos": {"x": i * width, "y": y + 1, "w": width, "h": 8},
                "targets": [{"refId": "A", "expr": expression}],
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
