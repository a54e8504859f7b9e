"""A profile has the steps as ranges, the stages in them, and on a GPU the kernels."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from predictors.compute.profiling import profiler as profiling
from predictors.compute.profiling import trace_table
from predictors.compute.profiling.profiler import Profiler, RecordedProfile, staged
from predictors.errors import DeadlineExceeded


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "STAGES", set(profiling.STAGES))


def recorded(device: str, steps: int) -> tuple[RecordedProfile, list[Any]]:
    """A report of `steps` steps of one product, and the events of its trace."""

    @staged("product")
    def product(x: torch.Tensor) -> torch.Tensor:
        return x @ x

    x = torch.ones(64, 64, device=device)
    product(x)  # before anything records: no range
    profiler = Profiler()
    profiler.start()
    for _ in range(steps):
        profiler.before_step()
        product(x)
        profiler.after_step()
    profiler.stop()
    product(x)
    report = profiler.report()
    return report, json.loads(gzip.decompress(report.trace))["traceEvents"]


def test_steps_and_stages_are_ranges_and_rows() -> None:
    report, events = recorded("cpu", 3)
    named = Counter(e["name"] for e in events if e.get("cat") == "user_annotation")
    assert named == {"engine_step": 3, "product": 3}
    stages: Any = report.table["stages"]
    assert {row["name"]: row["calls"] for row in stages} == named
    assert sum(e["name"] == "aten::mm" for e in events if e.get("cat") == "cpu_op") == 3


def test_a_table_that_takes_too_long_is_abandoned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    endless = tmp_path / "endless.py"
    endless.write_text("import signal\nsignal.pause()\n")
    monkeypatch.setattr(trace_table, "__file__", str(endless))
    monkeypatch.setattr(profiling, "REPORT_TIMEOUT_S", 0.001)
    with pytest.raises(DeadlineExceeded, match="record fewer steps"):
        recorded("cpu", 1)


@pytest.mark.gpu
def test_kernels_are_in_the_trace_and_their_time_is_the_stages() -> None:
    report, events = recorded("cuda", 3)
    kernels = [e for e in events if e.get("cat") == "kernel"]
    assert len(kernels) >= 3
    assert report.table["sorted_by"] == "self_device_us"
    top: Any = report.table["top"]
    assert top[0]["self_device_us"] > 0
    rows: Any = report.table["stages"]
    device_us = {row["name"]: row["device_us"] for row in rows}
    assert device_us["product"] == pytest.approx(sum(e["dur"] for e in kernels), rel=0.1)
