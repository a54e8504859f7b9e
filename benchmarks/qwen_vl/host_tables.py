"""Tables of the host's time in the clients' cases of our server, for the terminal: where a first
token's time goes, and the processor time of each step. With `--probe` also the phases of steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common.host_time import FIRST_TOKEN, OF_THREADS
from benchmarks.common.journal import Rows, Tables
from benchmarks.serving.step_report import steps_table, time_cell, waits_table

Found = Mapping[str, Any]


def _hosts(found: Found) -> dict[str, dict[str, Any]]:
    """The clients' figures by case, where they have the host's."""
    rows = found.get("http", {}).items()
    return {name: row for name, row in rows if isinstance(row, dict) and "host" in row}


def first_tokens(found: Found) -> Rows:
    """`vision_encode` is a part of `prefill`."""
    rows = _hosts(found)
    if not rows:
        return
    yield (
        "first token, ms: mean (p50, p99)", "clients, mean", *FIRST_TOKEN, "vision_encode",
        "not in a stage, mean",
    )  # fmt: skip
    for name, row in rows.items():
        host = row["host"]
        stages = (*FIRST_TOKEN, "vision_encode")
        cells = (time_cell(host["stages"][s]) if s in host["stages"] else "-" for s in stages)
        rest = host["not in a stage, ms"]
        yield name, f"{host['ttft_ms_mean']:.1f}", *cells, f"{rest:.1f}"


def processor_time(found: Found) -> Rows:
    rows = _hosts(found)
    if not rows:
        return
    yield (
        "processor time, ms per step", "steps", *OF_THREADS, "event loop's lag, ms",
        "texts per answer", "tokens",
    )  # fmt: skip
    for name, row in rows.items():
        host, lag = row["host"], row["host"]["loop_lag"]
        threads = (f"{host['processor_ms_per_step'][each]:.2f}" for each in OF_THREADS)
        late = time_cell(lag) if lag["count"] else "-"
        counts = f"{row['texts_mean']:.1f}", f"{row['tokens_mean']:.1f}"
        yield name, f"{host['steps']:.0f}", *threads, late, *counts


def steps(found: Found) -> Rows:
    probed = found.get("http", {}).get("probe", {})
    if probed:
        yield from steps_table(probed)


def waits(found: Found) -> Rows:
    probed = found.get("http", {}).get("probe", {})
    if probed:
        yield from waits_table(probed)


TABLES: Tables = {
    "first_tokens": first_tokens,
    "processor_time": processor_time,
    "probed_steps": steps,
    "probed_waits": waits,
}
