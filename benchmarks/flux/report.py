"""The tables that people read and the JSON that stays. Knows rows, floors and ratios; measures
nothing.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.flux.cases import Case, Row, Stages
from benchmarks.flux.floors import Ceilings, Operations

HEAD = (
    "model", "size", "steps", "batch", "engine", "seconds", "least to largest", "ms/step",
    "TFLOP/s", "of floor", "GiB", "vs peer",
)  # fmt: skip
PEER = "diffusers"


def figures(row: Row, work: Operations, tokens: int, ceilings: Ceilings) -> dict[str, Any]:
    """What follows from a row: rates and shares. `work` is one pass of one picture.

    The share is of the whole picture, everything but the transformer's floor counted as loss; the
    rate is of the passes that were really made.
    """
    passes = row.passes * row.case.batch
    floor_s = passes * ceilings.floor_s(work, tokens, is_fp8=row.is_fp8)
    return {
        "ms_per_step": 1e3 * row.seconds.median / row.case.steps / row.case.batch,
        "tflops": passes * work.total / row.seconds.median / 1e12,
        "floor_s": floor_s,
        "share_of_floor": floor_s / row.seconds.median,
    }


def best_peer(rows: Iterable[Row], case: Case) -> Row | None:
    """The fastest of the peer's rows for a case."""
    peers = [row for row in rows if row.case == case and row.engine.startswith(PEER)]
    return min(peers, key=lambda row: row.seconds.median, default=None)


def ratio(rows: Iterable[Row], row: Row) -> float | None:
    """The fastest peer's seconds over this row's, on the same case."""
    peer = best_peer(rows, row.case)
    return None if peer is None else peer.seconds.median / row.seconds.median


def table(rows: Sequence[Row], derived: Sequence[Mapping[str, Any]]) -> str:
    """One line per row; `derived` are their `figures`."""
    lines = [_cells(row, own, ratio(rows, row)) for row, own in zip(rows, derived, strict=True)]
    return columns([HEAD, *lines])


def _cells(row: Row, own: Mapping[str, Any], times: float | None) -> tuple[str, ...]:
    case, seconds = row.case, row.seconds
    return (
        case.model,
        case.size,
        str(case.steps) if row.passes == case.steps else f"{case.steps} ({row.passes})",
        str(case.batch),
        row.engine,
        f"{seconds.median:.3f}",
        f"{seconds.least:.3f} to {seconds.largest:.3f}",
        f"{own['ms_per_step']:.1f}",
        f"{own['tflops']:.0f}",
        f"{100 * own['share_of_floor']:.0f} %",
        "" if row.peak_gib is None else f"{row.peak_gib:.1f}",
        "" if times is None else f"{times:.2f}x",
    )


def stage_table(stages: Sequence[Stages]) -> str:
    """Milliseconds by stage, one line each."""
    lines = [("case", "engine", "stage", "ms", "least to largest")]
    for each in stages:
        for name, ms in each.ms.items():
            if ms is None:
                continue
            span = f"{ms.least:.2f} to {ms.largest:.2f}"
            lines.append((str(each.case), each.engine, name, f"{ms.median:.2f}", span))
    return columns(lines)


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Cells padded to equal widths; the first line is the head."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)


def machine(device: torch.device) -> dict[str, Any]:
    """What it was measured on."""
    gpu = {}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        gpu = {
            "gpu": card.name,
            "gpu_memory_gib": round(card.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "triton": version("triton"),
        }
    packages = ("torch", "diffusers", "transformers", "pillow", "fa3-fwd")
    return {
        **gpu,
        "device": device.type,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "date": time.strftime("%Y-%m-%d"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # fp8 attention's is optional
        return None


def write(path: Path, results: Mapping[str, Any]) -> None:
    """The results so far: a run that is cut off leaves what it had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1, default=_plain) + "\n")


def _plain(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} is not written to JSON")
