"""NVML's values are converted to base units, refused ones are absent, and slices are found."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest
import torch

from predictors.compute.watch import nvml
from predictors.compute.watch.nvml import XidUnavailable, find_card, open_library
from tests.compute.watch.scripted_nvml import ANSWERS, CARD, SLICE, WHOLE_CARD, ScriptedNvml
from tests.fakes import PATIENCE_S

MISSING = sorted(set(ANSWERS))


def test_every_name_of_the_binding_that_we_use_is_there() -> None:
    """The names that the scripted driver has exist in the wheel of the binding."""
    binding = importlib.import_module("pynvml")
    tree = ast.parse(Path(nvml.__file__).read_text())
    named = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    named |= {
        n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and type(n.value) is str
    }
    used = {name for name in named if name.startswith(("nvml", "NVML")) and name.isidentifier()}
    assert len(used) > 15
    assert {name for name in used if not hasattr(binding, name)} == set()
    for name in ("NVML_TEMPERATURE_GPU", "NVML_ERROR_TIMEOUT", "nvmlEventTypeXidCriticalError"):
        assert getattr(ScriptedNvml, name) == getattr(binding, name)
    fields = {name for name, _ in binding.c_nvmlEventData_t._fields_}
    assert {"eventType", "eventData", "gpuInstanceId"} <= fields
    assert binding.NVMLError(binding.NVML_ERROR_TIMEOUT).value == binding.NVML_ERROR_TIMEOUT


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a driver")
def test_a_machine_without_a_driver_has_no_library() -> None:
    assert open_library() is None


def test_an_installation_without_the_extra_has_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_library() is None


def test_a_card_is_read_in_base_units() -> None:
    card = find_card(ScriptedNvml(), CARD)
    assert card is not None
    assert card.name == f"GPU-{CARD}"
    reading = card.read()
    assert reading.memory_bytes == {"used": 30, "free": 70, "total": 100}
    assert (reading.utilization, reading.temperature_celsius) == (0.37, 54.0)
    assert (reading.power_watts, reading.power_limit_watts) == (412.5, 700.0)


@pytest.mark.parametrize("function", MISSING)
def test_a_refused_value_is_absent_and_the_others_are_read(function: str) -> None:
    card = find_card(ScriptedNvml(function), CARD)
    assert card is not None
    reading = card.read()
    said = {
        "nvmlDeviceGetMemoryInfo": reading.memory_bytes or None,
        "nvmlDeviceGetUtilizationRates": reading.utilization,
        "nvmlDeviceGetTemperature": reading.temperature_celsius,
        "nvmlDeviceGetPowerUsage": reading.power_watts,
        "nvmlDeviceGetEnforcedPowerLimit": reading.power_limit_watts,
    }
    assert {name for name, value in said.items() if value is None} == {function}


def test_a_device_that_nvml_does_not_know_is_none() -> None:
    assert find_card(ScriptedNvml(), "another") is None


def test_a_slice_named_by_cuda_is_found() -> None:
    card = find_card(ScriptedNvml(slices=2), SLICE)
    assert card is not None
    assert card.name == f"MIG-{SLICE}"


def test_the_only_slice_of_a_card_named_by_cuda_is_used() -> None:
    card = find_card(ScriptedNvml(slices=1, by_slice=False), CARD)
    assert card is not None
    assert card.name == f"MIG-{SLICE}"


def test_of_several_slices_none_is_chosen() -> None:
    assert find_card(ScriptedNvml(slices=2, by_slice=False), CARD) is None


def test_errors_of_a_card_are_returned_and_a_wait_may_time_out() -> None:
    library = ScriptedNvml()
    card = find_card(library, CARD)
    assert card is not None
    errors = card.errors()
    assert errors is not None
    assert library.registered == [("card", library.nvmlEventTypeXidCriticalError)]
    library.report((79, WHOLE_CARD))
    assert errors.wait(PATIENCE_S) == 79
    assert errors.wait(0.01) is None
    library.report(library.NVMLError(library.NVML_ERROR_GPU_IS_LOST))
    with pytest.raises(XidUnavailable):
        errors.wait(PATIENCE_S)
    errors.close()
    assert library.num_calls("nvmlEventSetFree") == 1


def test_a_slice_gets_its_own_errors_and_those_of_the_whole_card() -> None:
    library = ScriptedNvml(slices=2)
    card = find_card(library, SLICE)
    assert card is not None
    errors = card.errors()
    assert errors is not None
    assert library.registered[0][0] == "card", "events are the card's, not the slice's"
    for event in ((31, 1), (13, 0), (79, WHOLE_CARD)):
        library.report(event)
    assert [errors.wait(PATIENCE_S) for _ in range(3)] == [None, 13, 79]


@pytest.mark.parametrize("function", ["nvmlEventSetCreate", "nvmlDeviceRegisterEvents"])
def test_a_driver_without_error_reports_is_not_waited_for(function: str) -> None:
    library = ScriptedNvml(function)
    card = find_card(library, CARD)
    assert card is not None
    assert card.errors() is None
    assert library.num_calls("nvmlEventSetFree") == (function == "nvmlDeviceRegisterEvents")
