"""The host's time of a case is what its server counted between two readings."""

from __future__ import annotations

import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from benchmarks.common.host_time import (
    OF_THREADS,
    HostReading,
    TimeHistogram,
    children_seconds,
    host_figures,
    read_series,
)
from benchmarks.common.server import MODEL
from benchmarks.qwen_vl import host_tables

BUSY = """
import os, sys, time
while time.process_time() < 0.1: pass
print("done", flush=True)
sys.stdin.read()
"""


class Scrape:
    """Series of a server, as /metrics has them."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        labels, own = ["model", "stage"], {"registry": self._registry, "buckets": (0.1, 0.2)}
        name = "predictors_stage_duration_seconds"
        self.stages = Histogram(name, "x", labels, **own)  # type: ignore[arg-type]
        queue = Histogram("predictors_queue_duration_seconds", "x", ["model"], **own)  # type: ignore[arg-type]
        self.queue = queue.labels(MODEL)
        self.lag = Histogram("predictors_event_loop_lag_seconds", "x", **own)  # type: ignore[arg-type]
        steps = Counter("predictors_engine_steps", "x", ["model"], registry=self._registry)
        self.steps, self.others = steps.labels(MODEL), steps.labels("flux")

    def reading(self, engine_s: float) -> HostReading:
        seconds = dict.fromkeys(OF_THREADS, 0.0) | {"engine": engine_s}
        return HostReading(*read_series(generate_latest(self._registry).decode()), seconds)


def test_a_quantile_is_on_a_line_inside_its_bucket_and_not_beyond_the_last_bound() -> None:
    times = TimeHistogram([0.1, 0.2, float("inf")], [2.0, 4.0, 5.0])
    assert times.quantile_s(0.2) == pytest.approx(0.05)
    assert times.quantile_s(0.6) == pytest.approx(0.15)
    assert times.quantile_s(0.99) == 0.2
    assert TimeHistogram([0.1, float("inf")], [0.0, 0.0]).figures() == {"count": 0.0}


def test_a_case_has_what_came_between_its_readings_and_says_what_no_stage_has() -> None:
    server = Scrape()
    server.stages.labels(MODEL, "prefill").observe(0.19)
    server.stages.labels(MODEL, "decode").observe(5.0)
    server.steps.inc(7)
    before = server.reading(1.0)
    for stage, seconds in (("receive", 0.01), ("prepare", 0.02), ("prefill", 0.15)):
        for _ in range(2):
            server.stages.labels(MODEL, stage).observe(seconds)
    server.stages.labels("flux", "prepare").observe(9.0)
    server.queue.observe(0.0)
    server.queue.observe(0.04)
    server.lag.observe(0.15)
    server.steps.inc(10)
    server.others.inc(1000)
    found = host_figures(before, server.reading(1.5), ttft_ms=230.0)
    assert set(found["stages"]) == {"receive", "prepare", "queue", "prefill"}
    assert found["stages"]["prefill"]["count"] == 2
    assert found["stages"]["prefill"]["mean_ms"] == pytest.approx(150)
    assert found["stages"]["queue"]["mean_ms"] == pytest.approx(20)
    assert found["not in a stage, ms"] == pytest.approx(230 - 10 - 20 - 20 - 150)
    assert found["steps"] == 10
    assert found["processor_ms_per_step"]["engine"] == pytest.approx(50)
    assert found["loop_lag"]["p50_ms"] == pytest.approx(150)
    row = {"host": found, "texts_mean": 6.5, "tokens_mean": 8.0}
    cases = {"http": {"1 x text": row, "ready_s": 3.0}}
    assert list(host_tables.first_tokens(cases))[1] == (
        "1 x text", "230.0", "10.0 (50.0, 99.0)", "20.0 (50.0, 99.0)", "20.0 (50.0, 99.0)",
        "150.0 (150.0, 199.0)", "-", "30.0",
    )  # fmt: skip
    assert list(host_tables.processor_time(cases))[1] == (
        "1 x text", "10", "50.00", "0.00", "0.00", "0.00", "0.00", "150.0 (150.0, 199.0)",
        "6.5", "8.0",
    )  # fmt: skip


def test_child_processes_are_counted_by_their_parent() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        child.stdout.readline()
        parent = int(_parent(child.pid))
        assert children_seconds(parent) >= 0.08, "ticks of 10 ms"
        assert children_seconds(child.pid) == 0.0
        child.stdin.close()


def _parent(pid: int) -> str:
    with open(f"/proc/{pid}/status") as status:
        return next(line.split()[1] for line in status if line.startswith("PPid:"))
