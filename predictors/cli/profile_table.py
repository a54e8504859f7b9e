"""Formats the table of a profile for a terminal: stages first, then the names with the most time of
their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

WIDTH = 60
"""Characters of a name. The template parameters of a kernel are cut off."""
CPU = (("cpu ms", "cpu_us"), ("own cpu ms", "self_cpu_us"))
DEVICE = (("device ms", "device_us"), ("own device ms", "self_device_us"))


def profile_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The lines of the report of the verb `profile`: its table, and where the trace is."""
    yield from table_lines(report, report["steps"])
    yield f"\n{report['steps']} steps in {report['seconds']:.2f} s; trace: {report['trace']}"


def table_lines(table: Mapping[str, Any], steps: int) -> Iterator[str]:
    """The lines for the `table` of a report of `steps` steps."""
    columns = (*DEVICE, *CPU) if table["sorted_by"] == "self_device_us" else CPU
    yield from _section(f"stages, {steps} steps", table["stages"], columns)
    yield ""
    yield from _section("most time of their own", table["top"], columns)


def _section(
    title: str, rows: Iterable[Mapping[str, Any]], columns: Sequence[tuple[str, str]]
) -> Iterator[str]:
    heads = "".join(f"{head:>15}" for head, _ in columns)
    yield f"{title:<{WIDTH}}{'calls':>9}{heads}"
    for row in rows:
        name = row["name"] if len(row["name"]) < WIDTH else row["name"][: WIDTH - 4] + "..."
        times = "".join(f"{row[field] / 1000:>15,.2f}" for _, field in columns)
        yield f"{name:<{WIDTH}}{row['calls']:>9}{times}"
