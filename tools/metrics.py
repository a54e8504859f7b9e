# ruff: noqa: E501 - one row of a table, one line
"""Writes docs/metrics.md from predictors/metrics.py: one row per series, and what is
looked for in vain, the only part that names series itself.

`python tools/metrics.py` writes the file, `--check` says whether it is current.
"""

from __future__ import annotations

import sys
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from predictors import metrics
from predictors.chat.metrics import SERIES as CHAT
from predictors.diffusion.metrics import SERIES as DIFFUSION
from predictors.diffusion.request import TIERS
from predictors.settings import CHOICES

PAGE = Path(__file__).resolve().parents[1] / "docs/metrics.md"
HEAD = """# Metrics

<!-- Written by `make docs` from predictors/metrics.py; edit that file. -->

`GET /metrics`, Prometheus text or OpenMetrics by `Accept`. Every counter and histogram of a model
exists at zero from the start, so `rate()` works on the first error. Labels are bounded: never a
prompt, a seed, a caller or a raw size. KServe's own series are there too.

A scrape of both models costs 3 ms of CPU; under full load on two cores 7, and 18 ms in the median
until it is there ([performance](performance.md)).

Where requests are [traced](operations.md), the histograms of a request's, its queue's and its
stages' duration and of the time to its first token or image carry the trace's id as an exemplar;
OpenMetrics only, and Prometheus keeps them with `--enable-feature=exemplar-storage`.

Those of the GPU (`predictors_gpu_*`) are read every five seconds, and what is not to be had is
absent: all of them on a CPU; without the extra `gpu` (`nvidia-ml-py`), or where driver, container
or MIG slice does not tell, each one that only the driver knows. `device` is the driver's UUID of
the GPU or slice that this process computes on, as in DCGM's label `UUID`.

| series | type | labels | |
|---|---|---|---|
"""
TAIL = """
| label | values |
|---|---|
"""
ABSENT = """
## Left out or renamed

What a reader of vLLM's, Triton's or KServe's series looks for and does not find under that name:

| looked for | here | why |
|---|---|---|
| label `code` | label `reason` | the code follows from reason and protocol ([statuses](api.md#statuses)); a stream of OpenAI's fails after its 200 |
| label `priority` | none | there are no priorities |
| waiting requests of the front end | `predictors_requests_in_flight` less `predictors_requests_waiting` and `predictors_requests_running` | `waiting` is the admission queue alone, per model, in rows; `in_flight` counts requests of the process, from the edge on |
| `batch_wait` | `predictors_queue_duration_seconds` | no batch is waited for: a job joins with the next step that has a slot |
| `batch_executions` | `predictors_batch_size_count`, `predictors_engine_steps_total` | passes; and steps, which may be made of passes of several shapes |
| `preemptions` | none | a sequence reserves all its KV pages before it starts; none is ever preempted |
| caches `compile`, `cuda_graph` | `predictors_start_info`, `predictors_start_compilations`, `predictors_recompilations_total`, `predictors_graph_captures_total` | they are filled at the start and asked for nothing later; a miss after ready is counted |
| phase `download` | none | the checkpoint is on disk before the process starts: KServe's storage initializer is another container |
| stage `image_fetch` | none | no URL is fetched: pictures come inside the request |
| stage `image_decode` | stage `prepare` | one stage for all that is done to inputs before the engine |
| stage `safety` | none | there is no safety checker |
| `request_vision_tokens`, `input_image_bytes` | `predictors_vision_tokens_total`, `predictors_input_image_pixels` | pixels decide what a picture costs, compressed bytes do not |
| `engine_restarts` | `predictors_engine_failures_total` | a dead engine ends the process; the restart is Kubernetes' and shows in `process_start_time_seconds` |
| `gpu_errors` | `predictors_gpu_xid_errors_total`, `predictors_jobs_total` with reason `oom`, `predictors_engine_failures_total` | the driver's, the allocator's, and a lost device |
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
    """One row per label with a closed set of values."""
    closed = {
        "protocol": metrics.PROTOCOLS,
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
        "kernel": [name for name in CHOICES["PREDICTORS_COMPUTE_ATTENTION"] if name != "auto"],
    }
    return [
        f"| `{label}` | {', '.join(f'`{value}`' for value in dict.fromkeys(named))} |"
        for label, named in closed.items()
    ]


def page() -> str:
    """The whole page."""
    return HEAD + "\n".join(rows()) + "\n" + TAIL + "\n".join(values()) + "\n" + ABSENT


def main() -> int:
    """Write or check the page; returns the exit code."""
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.read_text(encoding="utf-8") == page() else 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
