"""The host's time in a case of clients, by our server itself: the stages of a first token and the
event loop's lag by its histograms, the processor time of its threads by `/debug/engine`, that of
its child processes by /proc. Each is read before and after the case; the difference is the case's.
"""

from __future__ import annotations

import json
import re
import urllib.request
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.common.server import MODEL, Server
from predictors.observe.thread_times import processor_seconds

FIRST_TOKEN = ("receive", "prepare", "queue", "prefill")
"""Stages that follow each other without a gap, from a request's head to its first token."""
STAGE, QUEUE = "predictors_stage_duration_seconds", "predictors_queue_duration_seconds"
LAG, STEPS = "predictors_event_loop_lag_seconds", "predictors_engine_steps_total"
CHILDREN = "worker processes"
THREADS = {"MainThread": "event loop", f"{MODEL}-engine": "engine"} | dict.fromkeys(
    (f"{MODEL}-prepare", f"{MODEL}-prepare-large"), "prepare"
)
"""Names of threads in the server -> names here; any other is one of `others`."""
OF_THREADS = ("engine", "event loop", "prepare", CHILDREN, "others")


@dataclass(slots=True)
class TimeHistogram:
    """A histogram of the server in seconds: counts up to each bound, ascending, and their sum."""

    bounds: list[float] = field(default_factory=list)
    counts: list[float] = field(default_factory=list)
    sum_s: float = 0.0

    def since(self, before: TimeHistogram) -> TimeHistogram:
        """The values since the reading `before`."""
        earlier = before.counts or [0.0] * len(self.counts)
        counts = [now - then for now, then in zip(self.counts, earlier, strict=True)]
        return TimeHistogram(self.bounds, counts, self.sum_s - before.sum_s)

    @property
    def count(self) -> float:
        return self.counts[-1] if self.counts else 0.0

    def quantile_s(self, share: float) -> float:
        """By a straight line inside its bucket, as Prometheus has it; the last finite bound for one
        beyond it. There must be values."""
        rank = share * self.count
        place = bisect_left(self.counts, rank)
        if place == len(self.bounds) - 1:  # its bound is infinite
            return self.bounds[-2]
        low, below = (self.bounds[place - 1], self.counts[place - 1]) if place else (0.0, 0.0)
        inside = (rank - below) / (self.counts[place] - below)
        return low + inside * (self.bounds[place] - low)

    def figures(self) -> dict[str, float]:
        if not self.count:
            return {"count": 0.0}
        return {
            "count": self.count,
            "mean_ms": 1e3 * self.sum_s / self.count,
            "p50_ms": 1e3 * self.quantile_s(0.50),
            "p99_ms": 1e3 * self.quantile_s(0.99),
        }


@dataclass(frozen=True, slots=True)
class HostReading:
    """Sums since the server's start."""

    stages: Mapping[str, TimeHistogram]
    """The queue's wait is one."""
    lag: TimeHistogram
    steps: float
    processor_s: Mapping[str, float]
    """By the names of `OF_THREADS`."""


@dataclass(frozen=True, slots=True)
class HostWatch:
    """Reads the host's time of a server of ours with an admin port."""

    server: Server
    admin_port: int

    def read(self) -> HostReading:
        stages, lag, steps = read_series(self.server.get("/metrics"))
        seconds = dict.fromkeys(OF_THREADS, 0.0)
        for name, each in self.debug()["threads"].items():
            seconds[THREADS.get(name, "others")] += each
        seconds[CHILDREN] = children_seconds(self.server.process.pid)
        return HostReading(stages, lag, steps, seconds)

    def debug(self) -> dict[str, Any]:
        """`/debug/engine`."""
        url = f"http://127.0.0.1:{self.admin_port}/debug/engine"
        with urllib.request.urlopen(url, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


def read_series(text: str) -> tuple[dict[str, TimeHistogram], TimeHistogram, float]:
    """Stages by name, the event loop's lag and the engine's steps, of the text of /metrics."""
    stages: dict[str, TimeHistogram] = {}
    lag, steps = TimeHistogram(), 0.0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name, kind = sample.name.rpartition("_")[::2]
            if sample.labels.get("model", MODEL) != MODEL:
                continue
            if sample.name == STEPS:
                steps = sample.value
            if name not in (STAGE, QUEUE, LAG):
                continue
            stage = sample.labels.get("stage", "queue")
            into = lag if name == LAG else stages.setdefault(stage, TimeHistogram())
            if kind == "bucket":
                into.bounds.append(float(sample.labels["le"]))
                into.counts.append(sample.value)
            elif kind == "sum":
                into.sum_s = sample.value
    return stages, lag, steps


def children_seconds(pid: int) -> float:
    """Processor seconds of the running child processes."""
    found = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = re.match(r".*\) \S (\d+)", stat.read_text(), re.DOTALL)
        except OSError:  # it has ended
            continue
        if parent is not None and int(parent[1]) == pid:
            found += processor_seconds(stat.parent)
    return found


def host_figures(before: HostReading, after: HostReading, ttft_ms: float) -> dict[str, Any]:
    """Figures of the case between two readings. `ttft_ms` is the mean of its clients: what is left
    of it without the stages is on its way in or out, between a delivery and the event loop, or in
    the clients."""
    found = {
        name: stage.since(before.stages.get(name, TimeHistogram())).figures()
        for name, stage in after.stages.items()
    }
    stages = {name: row for name, row in found.items() if row["count"]}
    steps = after.steps - before.steps
    inside = sum(stages[name]["mean_ms"] for name in FIRST_TOKEN if name in stages)
    return {
        "ttft_ms_mean": ttft_ms,
        "stages": stages,
        "not in a stage, ms": ttft_ms - inside,
        "steps": steps,
        "processor_ms_per_step": {
            name: 1e3 * (seconds - before.processor_s[name]) / max(1.0, steps)
            for name, seconds in after.processor_s.items()
        },
        "loop_lag": after.lag.since(before.lag).figures(),
    }
