"""The table of a trace: calls, times with and without nested calls, and kernels of an operator."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from predictors.compute.profiling import trace_table
from predictors.compute.profiling.trace_table import rows_of


def event(cat: str, name: str, ts: float, dur: float, tid: int = 1, **args: object) -> Any:
    return {
        "ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": tid, "args": args
    }  # fmt: skip


STEP = [
    event("user_annotation", "step", 0, 100),
    event("cpu_op", "aten::linear", 10, 40),
    event("cpu_op", "aten::addmm", 12, 30),
    event("cuda_runtime", "cudaLaunchKernel", 20, 5, correlation=7),
    event("cpu_op", "aten::mul", 50, 10),  # begins when the other ends
    event("kernel", "gemm", 300, 200, tid=9, correlation=7),
    event("kernel", "gemm", 600, 50, tid=9, correlation=8),  # launched before it was recorded
    event("Trace", "PyTorch Profiler (0)", 0, 1000),
    {"ph": "M", "name": "process_name"},
]


def row(name: str, events: list[Any]) -> list[float]:
    (found,) = [each for each in rows_of(events) if each["name"] == name]
    return [v for v in found.values() if not isinstance(v, str)]  # type: ignore[misc]


def test_times_are_given_with_and_without_nested_calls() -> None:
    assert row("step", STEP) == [1, 100, 50, 200, 0]
    assert row("aten::linear", STEP) == [1, 40, 10, 200, 0]
    assert row("aten::mul", STEP) == [1, 10, 10, 0, 0]


def test_a_kernel_counts_for_its_launcher_and_has_its_own_row() -> None:
    assert row("aten::addmm", STEP) == [1, 30, 25, 200, 200]
    assert row("cudaLaunchKernel", STEP) == [1, 5, 5, 0, 0]
    assert row("gemm", STEP) == [2, 0, 0, 250, 250]


def test_threads_are_separate_and_the_order_does_not_matter() -> None:
    beside = [event("cpu_op", "aten::mul", 40, 30, tid=2), *reversed(STEP)]
    assert row("aten::mul", beside) == [2, 40, 40, 0, 0]
    assert row("step", beside) == [1, 100, 50, 200, 0]


def test_the_program_packs_the_trace_and_prints_its_rows(tmp_path: Path) -> None:
    trace, packed = tmp_path / "trace.json", tmp_path / "trace.json.gz"
    trace.write_text(json.dumps({"traceEvents": STEP}))
    command = [sys.executable, "-P", trace_table.__file__, str(trace), str(packed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300)
    assert json.loads(done.stdout) == rows_of(STEP)
    assert gzip.decompress(packed.read_bytes()) == trace.read_bytes()
