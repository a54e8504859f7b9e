"""Reads a Chrome trace of torch's profiler into one row per name: calls and time. Knows neither
torch nor this package: it runs as a program of its own, since the seconds that Python needs for a
hundred thousand events would be taken, thread or not, from everybody who is served.

`python trace_table.py TRACE PACKED` writes the rows as JSON to stdout, and TRACE gzipped to PACKED.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GZIP_LEVEL = 1  # of ISA-L: as small as the third of zlib, in a fifth of the time
LAUNCHES = frozenset({"cuda_runtime", "cuda_driver"})
ON_CPU = frozenset({"cpu_op", "user_annotation"}) | LAUNCHES
ON_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
MAX_NAME = 200


@dataclass(slots=True)
class Row:
    """All events of a name. Microseconds; `self` is without what was called from there."""

    calls: int = 0
    cpu_us: float = 0.0
    self_cpu_us: float = 0.0
    device_us: float = 0.0
    self_device_us: float = 0.0

    def shown(self, name: str) -> dict[str, object]:
        """As JSON, rounded."""
        fields = ("cpu_us", "self_cpu_us", "device_us", "self_device_us")
        times = {field: round(getattr(self, field), 1) for field in fields}
        return {"name": name, "calls": self.calls, **times}


@dataclass(slots=True)
class Span:
    """An event on a thread that has not ended yet, and what was found inside it so far."""

    name: str
    end_us: float
    is_launch: bool
    device_us: float = 0.0


def rows_of(events: Iterable[Mapping[str, Any]]) -> list[dict[str, object]]:
    """One row per name. An operator's device time is that of the kernels that it, or what it
    called, launched; a kernel has a row of its own, too."""
    rows: defaultdict[str, Row] = defaultdict(Row)
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
        _walk(found, rows, launched_us)
    return [row.shown(name) for name, row in rows.items()]


def _walk(
    events: list[Mapping[str, Any]],
    rows: defaultdict[str, Row],
    launched_us: Mapping[object, float],
) -> None:
    """Add one thread's events, which lie inside each other like brackets."""
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


def _close(open_spans: list[Span], rows: defaultdict[str, Row]) -> None:
    """The innermost span ends; whoever called it has used the device as long."""
    span = open_spans.pop()
    if not span.is_launch:
        rows[span.name].device_us += span.device_us
    if open_spans:
        open_spans[-1].device_us += span.device_us
        if span.is_launch:
            rows[open_spans[-1].name].self_device_us += span.device_us


def main(trace: Path, packed: Path) -> None:
    """The program."""
    import orjson  # the server's process names this module and has no need of them
    from isal import igzip

    raw = trace.read_bytes()
    packed.write_bytes(igzip.compress(raw, GZIP_LEVEL))
    sys.stdout.buffer.write(orjson.dumps(rows_of(orjson.loads(raw)["traceEvents"])))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
