"""The table of a profile on a terminal: columns for the machine, names cut to the line."""

from __future__ import annotations

from typing import Any

import pytest

from predictors.cli.profile_table import table_lines


def row(name: str, calls: int = 3) -> dict[str, Any]:
    """A row of a report with four different times."""
    times = {"cpu_us": 1500.0, "self_cpu_us": 250.0, "device_us": 2.5e6, "self_device_us": 4e3}
    return {"name": name, "calls": calls, **times}


TABLE = {"stages": [row("engine_step", 8)], "top": [row("k" * 200), row("aten::mm")]}


@pytest.mark.parametrize(
    ("order", "times"),
    [
        ("self_cpu_us", ["1.50", "0.25"]),
        ("self_device_us", ["2,500.00", "4.00", "1.50", "0.25"]),
    ],
)
def test_the_device_has_columns_if_there_is_one(order: str, times: list[str]) -> None:
    title, stage, blank, heads, kernel, operator = table_lines({**TABLE, "sorted_by": order}, 8)
    assert title.startswith("stages, 8 steps ")
    assert stage.split() == ["engine_step", "8", *times]
    assert blank == ""
    assert heads.count(" ms") == len(times)
    assert kernel.split() == ["k" * 56 + "...", "3", *times]
    assert operator.split() == ["aten::mm", "3", *times]
    assert len({len(line) for line in (title, stage, heads, kernel, operator)}) == 1
