"""Writes the benchmark tables of docs/performance.md and README.md from benchmarks/results.

`python -m benchmarks.journal`; a test fails where a page differs from the results.
"""

from __future__ import annotations

from benchmarks import prefill_steps
from benchmarks.common import journal, paths
from benchmarks.flux import tables as flux
from benchmarks.qwen_vl import tables as qwen_vl
from benchmarks.serving import start_tables

MODELS = {
    "flux": flux.ON_PAGES,
    "flux_energy": flux.ENERGY,
    "qwen_vl": qwen_vl.ON_PAGES,
    "qwen_vl_7b": qwen_vl.OF_SEVEN,
    "prefill_steps": prefill_steps.ON_PAGES,
    "image_starts": start_tables.ON_PAGES,
}
PAGES = (paths.ROOT / "docs" / "performance.md", paths.ROOT / "README.md")


def written(page: str) -> str:
    return journal.written(page, {m: (made, journal.results(m)) for m, made in MODELS.items()})


def main() -> None:
    for page in PAGES:
        page.write_text(written(page.read_text()))


if __name__ == "__main__":
    main()
