"""Writes the tables of the load runs into docs/performance.md and docs/reliability.md, between
`<!-- load NAME -->` and `<!-- end load -->`, from benchmarks/results/load-*.json.

`python -m tests.load.pages`; a test fails where a page differs from the results.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.common import paths
from benchmarks.common.tables import markdown
from tests.load import report

PARTS = ("curve", "flat", "greedy", "sigterm")
PLACE = re.compile(r"<!-- load (\w+) -->\n.*?<!-- end load -->", re.DOTALL)
PAGES = tuple(
    page for name in ("performance", "reliability")
    if (page := paths.ROOT / "docs" / f"{name}.md").exists()
)  # fmt: skip
MISSING = "Not measured yet."

Found = Mapping[str, Mapping[str, Any]]


def _about(found: Found) -> Iterator[tuple[str, ...]]:
    """Machine, cores, commit and seeds of each part."""
    yield "part", "commit", "processor", "cores: generator, server", "seconds", "beside it"
    for part in PARTS:
        one = found[part]
        if not one:
            continue
        cores = f"{one['generator_core']}, {' '.join(map(str, one['server_cores']))}"
        ran = part, one["commit"], one["machine"]["cpu"], cores, f"{one['took_s']:.0f}"
        yield (*ran, one["remark"] or "nothing")


TABLES: Mapping[str, Callable[[Found], Iterator[tuple[str, ...]]]] = {
    "about": _about,
    "curve": lambda found: report.curve_page_rows(found["curve"]),
    "flat": lambda found: report.flat_rows(found["flat"]),
    "greedy": lambda found: report.greedy_rows(found["greedy"]),
    "equals": lambda found: report.equal_rows(found["greedy"]),
    "sigterm": lambda found: report.sigterm_rows(found["sigterm"]),
    "shown": lambda found: iter(report.shown(*(found[part] for part in PARTS))),
}


def written(page: str, found: Found) -> str:
    def made(place: re.Match[str]) -> str:
        rows = list(TABLES[place[1]](found))
        body = markdown(rows) if len(rows) > 1 else MISSING
        return f"<!-- load {place[1]} -->\n{body}\n<!-- end load -->"

    return PLACE.sub(made, page)


def committed() -> dict[str, dict[str, Any]]:
    return {part: report.read(part) for part in PARTS}


def write() -> None:
    found = committed()
    for page in PAGES:
        page.write_text(written(page.read_text(), found))


if __name__ == "__main__":
    write()
