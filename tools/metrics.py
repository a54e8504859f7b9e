# ruff: noqa: E501 - one row of a table, one line
"""Generates docs/metrics.md from predictors/metrics.py: one row per series, the values of the
labels, and the series of other servers that have another name here.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from predictors import metrics
from predictors.chat.sequence import SERIES as CHAT
from predictors.diffusion.predictor import SERIES as DIFFUSION
from predictors.diffusion.request import TIERS
from predictors.settings import ComputeSettings, bounds_of
from tools.configuration import wrapped

PAGE = Path(__file__).resolve().parents[1] / "docs/metrics.md"
HEAD = """# Metrics

<!-- Written by `make docs` from predictors/metrics.py; edit that file. -->

`GET /metrics` answers in Prometheus' text format or in OpenMetrics, by `Accept`. Every counter and
histogram of a model exists at zero from the start, so `rate()` works on the first error. Labels are
bounded: never a prompt, a seed, a caller or a raw size. KServe's own series are there too.

A scrape of both models costs 3 ms of CPU. Under full load on two cores it costs 7 ms and takes
18 ms in the median ([performance](performance.md)).

If requests are [traced](operations.md), the durations of requests, queue and stages and the times
to the first token or picture have the trace's id as an exemplar. Exemplars are in OpenMetrics only;
Prometheus keeps them with `--enable-feature=exemplar-storage`.

The series of the GPU (`predictors_gpu_*`) are read every five seconds. A value that can't be read
is absent: all of them on a CPU; those of the driver without the extra `gpu` (`nvidia-ml-py`), or if
the driver, the container or a MIG slice does not show them. `device` is the driver's UUID of the
GPU or slice that this process uses, as in DCGM's label `UUID`.

| series | type | labels | |
|---|---|---|---|
"""
LABELS_HEAD = """
## Values of the labels

"""
RENAMED = (
    # name in vLLM, Triton or KServe; name here; reason
    (
        "label `code`",
        "label `reason`",
        "reason and protocol determine the code ([statuses](api.md#statuses)), and an OpenAI stream may fail after its 200",
    ),
    (
        "label `priority`",
        "none",
        "there are no priorities",
    ),
    (
        "waiting requests of the front end",
        "`predictors_requests_in_flight` less `predictors_requests_waiting` and `predictors_requests_running`",
        "`waiting` counts jobs in the admission queue of one model, `in_flight` counts requests of the process",
    ),
    (
        "`batch_wait`",
        "`predictors_queue_duration_seconds`",
        "jobs do not wait for a batch: each joins the next step that has a free slot",
    ),
    (
        "`batch_executions`",
        "`predictors_batch_size_count`, `predictors_engine_steps_total`",
        "the first counts passes, the second steps; a step may have passes of several shapes",
    ),
    (
        "caches `compile`, `cuda_graph`",
        "`predictors_start_info`, `predictors_start_compilations`, `predictors_recompilations_total`, `predictors_graph_captures_total`",
        "they are filled at the start; a miss after ready is counted",
    ),
    (
        "phase `download`",
        "none",
        "the checkpoint is on disk before the process starts: KServe's storage initializer is another container",
    ),
    (
        "stage `image_fetch`",
        "none",
        "URLs are not fetched: pictures come inside the request",
    ),
    (
        "stage `image_decode`",
        "stage `prepare`",
        "it covers all work on inputs before the engine",
    ),
    (
        "stage `safety`",
        "`predictors_stage_duration_seconds` with the stage `check`",
        "it is the operator's checker, where there is one",
    ),
    (
        "`request_vision_tokens`, `input_image_bytes`",
        "`predictors_vision_tokens_total`, `predictors_input_image_pixels`",
        "the cost of a picture depends on its pixels, not on its compressed size",
    ),
    (
        "`engine_restarts`",
        "`predictors_engine_failures_total`",
        "a failed engine ends the process; Kubernetes restarts it, which shows in `process_start_time_seconds`",
    ),
    (
        "`gpu_errors`",
        "`predictors_gpu_xid_errors_total`, `predictors_jobs_total` with reason `oom`, `predictors_engine_failures_total`",
        "they count errors of the driver, failed allocations, and lost devices",
    ),
)
RENAMED_HEAD = """
## Left out or renamed

Series and labels of vLLM, Triton and KServe that do not exist here under the same name:

"""


def rows() -> list[str]:
    """One row per series, in the order of the file."""
    lines = []
    for series in vars(metrics).values():
        if isinstance(series, MetricWrapperBase):
            name = series._name + ("_total" if series._type == "counter" else "")
            labels = ", ".join(f"`{label}`" for label in series._labelnames)
            lines.append(f"| `{name}` | {series._type} | {labels} | {series._documentation} |")
    return lines


def values() -> list[str]:
    """One entry per label with a fixed set of values."""
    (attention,) = (knob for knob in fields(ComputeSettings) if knob.name == "attention")
    closed = {
        "protocol": (*metrics.PROTOCOLS, metrics.ANTHROPIC),
        "reason": (*metrics.REASONS, *metrics.SPLITS),
        "stage": (*DIFFUSION.stages, *CHAT.stages),
        "resolution": metrics.RESOLUTIONS,
        "tier": TIERS,
        "cache": (*DIFFUSION.caches, *CHAT.caches),
        "result": metrics.CACHE_RESULTS,
        "phase": metrics.PHASES,
        "start": metrics.STARTS,
        "source": metrics.SOURCES,
        "state": metrics.GPU_MEMORY,
        "kind": metrics.XID_KINDS,
        "kernel": [name for name in bounds_of(attention).choices if name != "auto"],
    }
    return [
        wrapped(f"- `{label}`: {', '.join(f'`{value}`' for value in dict.fromkeys(named))}")
        for label, named in closed.items()
    ]


def renamed() -> list[str]:
    """One entry per series or label of another server."""
    return [
        wrapped(f"- {theirs}: {ours}. {reason[0].upper()}{reason[1:]}.")
        for theirs, ours, reason in RENAMED
    ]


def files() -> dict[Path, str]:
    """The page, by its path."""
    parts = (HEAD, rows(), LABELS_HEAD, values(), RENAMED_HEAD, renamed())
    texts = (part if isinstance(part, str) else "\n".join(part) + "\n" for part in parts)
    return {PAGE: "".join(texts)}
