"""Reads a Chrome trace of torch's profiler into one row per name, with calls and times.

It runs as a program of its own: `python trace_table.py TRACE PACKED` writes the rows as JSON to
stdout, and TRACE gzipped to PACKED. Python needs seconds for a hundred thousand events, which a
thread of the server would take from its requests.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GZIP_LEVEL = 1  # of ISA-L: the size of zlib's level 3 in a fifth of the time
LAUNCHES = frozenset({"cuda_runtime", "cuda_driver"})
ON_CPU = frozenset({"cpu_op", "user_annotation"}) | LAUNCHES
ON_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
MAX_NAME = 200


@dataclass(slots=True)
class TraceRow:
    """All events of a name, in microseconds. `self` times are without nested calls."""

    calls: int = 0
    cpu_us: float = 0.0
    self_cpu_us: float = 0.0
    device_us: float = 0.0
    self_device_us: float = 0.0

    def as_json(self, name: str) -> dict[str, object]:
        fields = ("cpu_us", "self_cpu_us", "device_us", "self_device_us")
        times = {field: round(getattr(self, field), 1) for field in fields}
        return {"name": name, "calls": self.calls, **times}


@dataclass(slots=True)
class Span:
    """An event of a thread that has not ended yet, with the device time of its nested events."""

    name: str
    end_us: float
    is_launch: bool
    device_us: float = 0.0


def rows_of(events: Iterable[Mapping[str, Any]]) -> list[dict[str, object]]:
    """One row per name. The device time of an operator is that of all kernels launched by it and by
    nested calls. A kernel also has a row of its own."""
    rows: defaultdict[str, TraceRow] = defaultdict(TraceRow)
    threads: defaultdict[object, list[Mapping[str, Any]]] = defaultdict(list)
    launched_us: defaultdict[object, float] = defaultdict(float)
    for event in events:
        kind = event.get("cat")
        if event.get("ph") == "X" and kind in ON_CPU:
            threads[event["tid"]].append(event)
        elif event.get("ph") == "X" and kind in ON_DEVICE:
            row = rows[event["name"][:MAX_NAME]]
            row.calls += 1
            row.device_us += event["dur"]
            row.self_device_us += event["dur"]
            launched_us[event.get("args", {}).get("correlation")] += event["dur"]
    for found in threads.values():
        _add_thread(found, rows, launched_us)
    return [row.as_json(name) for name, row in rows.items()]


def _add_thread(
    events: list[Mapping[str, Any]],
    rows: defaultdict[str, TraceRow],
    launched_us: Mapping[object, float],
) -> None:
    open_spans: list[Span] = []
    for event in sorted(events, key=lambda each: (each["ts"], -each["dur"])):
        while open_spans and open_spans[-1].end_us <= event["ts"]:
            _close(open_spans, rows)
        name, dur = event["name"][:MAX_NAME], event["dur"]
        if open_spans:
            rows[open_spans[-1].name].self_cpu_us -= dur
        row = rows[name]
        row.calls += 1
        row.cpu_us += dur
        row.self_cpu_us += dur
        span = Span(name, event["ts"] + dur, event["cat"] in LAUNCHES)
        if span.is_launch:
            span.device_us = launched_us.get(event.get("args", {}).get("correlation"), 0.0)
        open_spans.append(span)
    while open_spans:
        _close(open_spans, rows)


def _close(open_spans: list[Span], rows: defaultdict[str, TraceRow]) -> None:
    span = open_spans.pop()
    if not span.is_launch:
        rows[span.name].device_us += span.device_us
    if open_spans:
        open_spans[-1].device_us += span.device_us
        if span.is_launch:
            rows[open_spans[-1].name].self_device_us += span.device_us


def write_table(trace: Path, packed: Path) -> None:
    import orjson  # imported late: the server imports this module, but not for these
    from isal import igzip

    raw = trace.read_bytes()
    packed.write_bytes(igzip.compress(raw, GZIP_LEVEL))
    sys.stdout.buffer.write(orjson.dumps(rows_of(orjson.loads(raw)["traceEvents"])))


if __name__ == "__main__":
    write_table(Path(sys.argv[1]), Path(sys.argv[2]))
