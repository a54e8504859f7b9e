"""The table of docs/performance.md of starts in the image, before and after a change, made from
benchmarks/results/image_starts.json. Imports no part of the image's tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common.journal import Rows, Tables

PHASES = ("import", "load", "warm-up", "until ready")


def start_rows(found: Mapping[str, Any]) -> Rows:
    """Processor seconds of each phase, before -> after; the clock's for imports, as a range."""
    if "before" not in found:
        return
    yield ("processor s", *PHASES, "slowest import", "import, s of the clock", "MiB read")
    for room, by_cache in found["starts"].items():
        for cache, after in by_cache.items():
            before = found["before"][room][cache]
            pair = (before["processor_s"], after["processor_s"])
            yield (
                f"{room}, {cache}",
                *(_change(*(each[phase][0] for each in pair)) for phase in PHASES),
                _change(*(each["import"][2] for each in pair)),
                " -> ".join(_range(each["wall_s"]["import"]) for each in (before, after)),
                f"{before['read_mib'][0]:,.0f} -> {after['read_mib'][0]:,.0f}",
            )


def _change(before: float, after: float) -> str:
    return f"{before:.2f} -> {after:.2f}"


def _range(of_clock: list[float]) -> str:
    _, least, most = of_clock
    return f"{least:.1f} to {most:.1f}"


ON_PAGES: Tables = {"phases": start_rows}
