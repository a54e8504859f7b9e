"""A start counts the compilations of its own thread and shows its kind in the metrics."""

from __future__ import annotations

import threading

import pytest
import torch
from prometheus_client import REGISTRY

from predictors import metrics
from predictors.compute.compile.compile_cache import Bundle
from predictors.compute.compile.compiling import CompileCounts, compiled
from predictors.compute.compile.start import Start
from predictors.compute.device.placement import Placement

AOT = Placement(torch.device("cpu"), torch.float32, "aot_eager")


def start(model: str) -> Start:
    return Start(model, Bundle(None, {}), has_kernels=False)


def shown(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"predictors_{name}", labels)


def test_a_graph_without_a_cache_makes_a_cold_start() -> None:
    mine = start("cold")
    mine.begin()
    compiled(lambda x: x * 3 + 1, AOT, "affine")(torch.ones(2))
    found = mine.end()
    assert (found.compiled, found.cached) == (1, 0)
    assert found.seconds > 0
    assert [shown("start_info", model="cold", start=kind) for kind in metrics.STARTS] == [1, 0, 0]
    assert shown("start_compilations", model="cold", source="compiled") == 1
    assert shown("start_compilations", model="cold", source="cached") == 0
    assert shown("model_phase_seconds", model="cold", phase="compile") == found.seconds


def test_a_start_without_compilations_is_plain() -> None:
    mine = start("plain")
    mine.begin()
    assert mine.end() == CompileCounts()
    assert shown("start_info", model="plain", start="plain") == 1


def test_a_start_is_warm_only_if_everything_was_on_disk() -> None:
    assert CompileCounts(compiled=0, cached=2).kind == "warm"
    assert CompileCounts(compiled=1, cached=2).kind == "cold"


def test_compilations_of_another_thread_are_not_counted() -> None:
    mine = start("mine")
    mine.begin()
    unit = compiled(lambda x: x - 13, AOT, "minus")
    other = threading.Thread(target=unit, args=(torch.ones(2),))
    other.start()
    other.join()
    assert mine.end() == CompileCounts()


def test_a_second_begin_does_nothing_and_a_second_start_counts_from_zero() -> None:
    mine = start("twice")
    unit = compiled(lambda x: x - 17, AOT, "minus")
    mine.begin()
    unit(torch.ones(2))
    mine.begin()
    assert mine.end().compiled == 1
    mine.begin()
    assert mine.end() == CompileCounts()
    assert shown("start_info", model="twice", start="cold") == 0


def test_what_was_planned_belongs_to_the_start_and_what_runs_between_does_not() -> None:
    mine = start("planned")
    unit = compiled(lambda x: x - 19, AOT, "minus")
    mine.begin()
    assert mine.end().compiled == 0
    unit(torch.ones(2))
    with mine.planned():
        unit(torch.ones(3))
    assert mine.kind == "plain"
    mine.end_planned()
    assert mine.kind == "cold"
    assert shown("start_compilations", model="planned", source="compiled") == 1


def test_an_end_without_a_begin_raises() -> None:
    with pytest.raises(RuntimeError, match="did not begin"):
        start("unbegun").end()
