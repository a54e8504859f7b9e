"""A start is what its own thread compiled, and the metrics say which kind it was."""

from __future__ import annotations

import threading

import pytest
import torch
from prometheus_client import REGISTRY

from predictors import metrics
from predictors.compute.compile.compile_cache import Bundle
from predictors.compute.compile.compiling import compiled
from predictors.compute.compile.start import Start, Tally
from predictors.compute.device.placement import Placement

AOT = Placement(torch.device("cpu"), torch.float32, "aot_eager")


def start(model: str) -> Start:
    return Start(model, Bundle(None, {}), has_kernels=False)


def shown(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"predictors_{name}", labels)


def test_a_graph_that_no_disk_keeps_makes_a_cold_start() -> None:
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


def test_without_anything_to_compile_a_start_is_neither_cold_nor_warm() -> None:
    mine = start("plain")
    mine.begin()
    assert mine.end() == Tally()
    assert shown("start_info", model="plain", start="plain") == 1


def test_all_from_disk_is_warm_and_anything_else_is_not() -> None:
    assert Tally(compiled=0, cached=2).start == "warm"
    assert Tally(compiled=1, cached=2).start == "cold"


def test_another_rooms_compilations_are_not_counted() -> None:
    mine = start("mine")
    mine.begin()
    unit = compiled(lambda x: x - 13, AOT, "minus")
    other = threading.Thread(target=unit, args=(torch.ones(2),))
    other.start()
    other.join()
    assert mine.end() == Tally()


def test_only_the_first_begin_matters_and_a_second_start_begins_anew() -> None:
    mine = start("twice")
    unit = compiled(lambda x: x - 17, AOT, "minus")
    mine.begin()
    unit(torch.ones(2))
    mine.begin()  # as `take` after `load`
    assert mine.end().compiled == 1
    mine.begin()
    assert mine.end() == Tally()
    assert shown("start_info", model="twice", start="cold") == 0


def test_an_end_without_a_begin_is_a_fault() -> None:
    with pytest.raises(RuntimeError, match="did not begin"):
        start("unbegun").end()
