"""What NVML tells is read as meant, what it refuses is absent, and a slice is not its card."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest
import torch

from predictors.compute.watch import nvml
from predictors.compute.watch.nvml import NvmlSilent, find_card, open_library
from tests.compute.scripted_nvml import ANSWERS, CARD, SLICE, WHOLE_CARD, ScriptedNvml

MISSING = sorted(set(ANSWERS))


def test_every_name_of_the_binding_that_we_use_is_there() -> None:
    """The scripted driver can't drift from the library: its names are looked for in the wheel."""
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
def test_what_is_refused_is_absent_and_the_rest_is_there(function: str) -> None:
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


def test_a_slice_that_cuda_names_is_found_by_its_own_name() -> None:
    card = find_card(ScriptedNvml(slices=2), SLICE)
    assert card is not None
    assert card.name == f"MIG-{SLICE}"


def test_the_only_slice_of_a_card_that_cuda_names_is_ours() -> None:
    card = find_card(ScriptedNvml(slices=1, by_slice=False), CARD)
    assert card is not None
    assert card.name == f"MIG-{SLICE}"


def test_of_several_slices_none_is_guessed() -> None:
    assert find_card(ScriptedNvml(slices=2, by_slice=False), CARD) is None


def test_errors_of_a_card_are_told_and_time_passes_without_one() -> None:
    library = ScriptedNvml()
    card = find_card(library, CARD)
    assert card is not None
    errors = card.errors()
    assert errors is not None
    assert library.registered == [("card", library.nvmlEventTypeXidCriticalError)]
    library.events.put((79, WHOLE_CARD))
    assert errors.wait(1.0) == 79
    assert errors.wait(0.01) is None
    library.events.put(library.NVMLError(library.NVML_ERROR_GPU_IS_LOST))
    with pytest.raises(NvmlSilent):
        errors.wait(1.0)
    errors.close()
    assert library.freed == 1


def test_a_slice_hears_its_own_errors_and_those_of_the_whole_card() -> None:
    library = ScriptedNvml(slices=2)
    card = find_card(library, SLICE)
    assert card is not None
    errors = card.errors()
    assert errors is not None
    assert library.registered[0][0] == "card", "events are the card's, not the slice's"
    for event in ((31, 1), (13, 0), (79, WHOLE_CARD)):
        library.events.put(event)
    assert [errors.wait(1.0) for _ in range(3)] == [None, 13, 79]


@pytest.mark.parametrize("function", ["nvmlEventSetCreate", "nvmlDeviceRegisterEvents"])
def test_a_driver_that_tells_no_errors_is_not_waited_for(function: str) -> None:
    library = ScriptedNvml(function)
    card = find_card(library, CARD)
    assert card is not None
    assert card.errors() is None
    assert library.freed == (function == "nvmlDeviceRegisterEvents")
