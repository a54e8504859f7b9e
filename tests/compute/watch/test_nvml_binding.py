"""NVIDIA's binding, `nvidia-ml-py`, against a library in C that answers like a driver. It holds the
assumptions of the scripted library in the other tests. Skipped without a C compiler.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).with_name("scripted_nvml.c")
PROGRAM = """
import dataclasses, json
from predictors.compute.watch.nvml import XidUnavailable, find_card, open_library

library = open_library()
found = {}
for uuid in ("abc", "def", "ghi"):
    card = find_card(library, uuid)
    found[uuid] = card and {"name": card.name, **dataclasses.asdict(card.read())}
errors, heard = find_card(library, "def").errors(), []
for _ in range(5):
    try:
        heard.append(errors.wait(0.01))
    except XidUnavailable as silent:
        heard.append(str(silent))
errors.close()
print(json.dumps({**found, "heard": heard}))
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The output of a process that uses this library instead of a driver's."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("driver")
    made = folder / "libnvidia-ml.so.1"
    command = [compiler, "-w", "-shared", "-fPIC", "-o", made, SOURCE]
    compiled = subprocess.run(command, capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr
    environ = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def test_a_card_is_read_and_a_function_that_its_driver_lacks_is_absent(
    printed: dict[str, Any],
) -> None:
    assert printed["abc"] == {
        "name": "GPU-abc",
        "memory_bytes": {"used": 30, "free": 70, "total": 100},
        "utilization": 0.37,
        "temperature_celsius": 54.0,
        "power_watts": 412.5,
        "power_limit_watts": None,
    }


def test_a_slice_is_found_and_its_values_are_read(printed: dict[str, Any]) -> None:
    own = printed["def"]
    assert (own["name"], own["memory_bytes"]["used"]) == ("MIG-def", 30)
    assert own["utilization"] is own["temperature_celsius"] is own["power_watts"] is None


def test_a_device_that_the_driver_does_not_know_is_none(printed: dict[str, Any]) -> None:
    assert printed["ghi"] is None


def test_a_slice_gets_the_cards_errors_and_its_own(printed: dict[str, Any]) -> None:
    assert printed["heard"] == [79, None, 13, "GPU is lost", None]
