"""Tables of docs/ and the README made from benchmarks/results. A table stands between
`<!-- MODEL NAME -->` and `<!-- end -->`; one whose figures were not measured says so in its place.
`benchmarks.journal` writes the pages, and a test holds them to the results.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.common import paths
from benchmarks.common.tables import columns, markdown

Rows = Iterator[tuple[str, ...]]
"""A table; the first row is its head."""
Table = Callable[[Mapping[str, Any]], Rows]
Tables = Mapping[str, Table]
"""By name; each takes the results of its benchmark."""

MISSING = "Not measured yet."
PLACE = re.compile(
    r"<!-- (flux|flux_energy|qwen_vl|qwen_vl_7b|prefill_steps|image_starts) (\w+) -->"
    r"\n.*?<!-- end -->",
    re.DOTALL,
)


def results(name: str) -> dict[str, Any]:
    """A committed results file; empty if there is none."""
    path = paths.RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def table(make: Table, found: Mapping[str, Any]) -> str:
    return markdown(make(found)) or MISSING


def as_text(tables: Tables, found: Mapping[str, Any]) -> str:
    """All tables that there are figures for, in columns."""
    made = [list(make(found)) for make in tables.values()]
    return "\n\n".join(columns(rows) for rows in made if rows)


def places(page: str) -> list[tuple[str, str]]:
    return [(place[1], place[2]) for place in PLACE.finditer(page)]


def written(page: str, models: Mapping[str, tuple[Tables, Mapping[str, Any]]]) -> str:
    def made(place: re.Match[str]) -> str:
        tables, found = models[place[1]]
        body = table(tables[place[2]], found)
        return f"<!-- {place[1]} {place[2]} -->\n{body}\n<!-- end -->"

    return PLACE.sub(made, page)
