"""A profile's rows as a person reads them on a terminal: stages first, then what took most time.
Knows the rows' names of columns, and not where they come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

WIDTH = 60
"""Characters of a name: a kernel's template parameters are not read here."""
CPU = (("cpu ms", "cpu_us"), ("own cpu ms", "self_cpu_us"))
DEVICE = (("device ms", "device_us"), ("own device ms", "self_device_us"))


def lines(table: Mapping[str, Any], steps: int) -> Iterator[str]:
    """The lines for `table`, a report's, of so many steps."""
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
