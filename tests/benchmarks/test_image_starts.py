"""Phases of a start from the lines of a server's log, and their medians. No image is needed."""

from __future__ import annotations

import json

import pytest

from benchmarks.common.paths import RESULTS
from benchmarks.serving.image_starts import (
    BEFORE,
    CACHES,
    ROOMS,
    STARTS,
    Moment,
    medians,
    phases_of,
)

LINES = (
    Moment("flux is loading", 104.0, 3.0),
    Moment("qwen-vl is loading", 104.5, 3.1),
    Moment("qwen-vl: load took 1.50 s", 106.0, 4.0),
    Moment("flux: load took 3.00 s", 107.0, 4.5),
    Moment("flux is ready", 108.0, 5.0),
    Moment("qwen-vl is ready", 109.0, 5.5),
    Moment("ready: flux, qwen-vl at http://127.0.0.1:8080/", 109.0, 5.5),
)


def test_a_phase_ends_with_the_last_model_and_imports_with_the_first() -> None:
    found = phases_of(100.0, LINES, ["flux", "qwen-vl"])
    assert found.wall == {"import": 4.0, "load": 3.0, "warm-up": 2.0, "until ready": 9.0}
    assert found.processor == {"import": 3.0, "load": 1.5, "warm-up": 1.0, "until ready": 5.5}
    summary = medians([found, phases_of(98.0, LINES, ["flux", "qwen-vl"]), found])
    assert summary["wall_s"]["import"] == [4.0, 4.0, 6.0]
    assert summary["runs"] == 3


def test_a_log_without_a_phase_is_an_error() -> None:
    with pytest.raises(ValueError, match="begins with 'qwen-vl is ready'"):
        phases_of(100.0, LINES[:5], ["flux", "qwen-vl"])


def test_the_results_hold_five_runs_of_each_start_and_no_module_against_the_budget() -> None:
    found = json.loads((RESULTS / "image_starts.json").read_text())
    for room in ROOMS:
        for cache in CACHES:
            assert found[BEFORE][room][cache]["runs"] == found[STARTS][room][cache]["runs"] == 5
    for imports in found["imports"].values():
        assert imports["against_the_budget"] == []
        assert imports["with_bytecode"] == imports["of_them_in_python"] > 1000
