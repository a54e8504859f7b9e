"""Device time by kernel: a trace for chrome://tracing, and a list of the kernels that take most."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common.clock import Clock

TOP = 30


def trace(clock: Clock, work: Callable[[], object], path: Path, top: int = TOP) -> list[Any]:
    """Run `work` once under the profiler. Writes a gzip trace to `path` (.json.gz); returns the
    kernels that took most, as (name, calls, milliseconds in all, share of the sum)."""
    activities = [ProfilerActivity.CPU]
    if clock.is_cuda:
        activities.append(ProfilerActivity.CUDA)
    clock.settle()
    with profile(activities=activities, acc_events=True) as seen:
        work()
        clock.settle()
    path.parent.mkdir(parents=True, exist_ok=True)
    seen.export_chrome_trace(str(path))
    return _kernels(seen.key_averages(), clock.is_cuda)[:top]


def _kernels(events: Any, is_cuda: bool) -> list[Any]:
    # on a GPU the rows of the device itself, not the host's calls that launched them
    rows = [
        (e.key, e.count, (e.self_device_time_total if is_cuda else e.self_cpu_time_total) / 1e3)
        for e in events
        if not is_cuda or e.device_type == torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]
    ]
    whole = sum(ms for _, _, ms in rows) or 1.0
    ordered = sorted(rows, key=lambda row: -row[2])
    return [(name, calls, ms, ms / whole) for name, calls, ms in ordered]


def as_text(kernels: list[Any]) -> str:
    lines = [f"{'ms':>10}  {'share':>6}  {'calls':>6}  kernel"]
    lines += [
        f"{ms:10.2f}  {100 * share:5.1f} %  {calls:6d}  {name[:110]}"
        for name, calls, ms, share in kernels
    ]
    return "\n".join(lines)
