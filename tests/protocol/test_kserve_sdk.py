"""KServe's package and pandas are the real ones, and run when a name is asked of them."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from predictors.protocol.kserve_sdk import put_off

PATIENCE_S = 180.0
NAME = "package_put_off_by_a_test"
AFTERWARDS = """
import sys
from predictors.protocol import kserve_sdk
assert "kubernetes" not in sys.modules and "kserve.models" not in sys.modules
import kserve.model
assert kserve.model.Model is kserve_sdk.Model
import kserve
from kserve import InferRequest, KServeClient, V1beta1InferenceService
assert (kserve.Model, InferRequest) == (kserve_sdk.Model, kserve_sdk.InferRequest)
assert issubclass(kserve_sdk.ModelServer, kserve.ModelServer)
assert (kserve.constants.__name__, kserve.utils.__name__) == (
    "kserve.constants.constants", "kserve.utils.utils"
)
"""


PANDAS = """
import sys
from predictors.protocol.kserve_sdk import InferInput, InferRequest
assert "pandas.core" not in sys.modules
import kserve.protocol.infer_type as given
assert given.InferRequest is InferRequest and given.__file__.endswith("infer_type.py")
"""
FRAMES = """
request = InferRequest("m", [InferInput("a", [2], "FP32", [1.0, 2.0])])
frame = request.as_dataframe()
import pandas, typing
from kserve.utils.utils import get_predict_input, get_predict_response
assert type(frame) is pandas.DataFrame and frame["a"].tolist() == [1.0, 2.0]
assert typing.get_type_hints(InferRequest.as_dataframe) == {"return": pandas.DataFrame}
row = {"instances": [{"a": [1]}]}
assert get_predict_response(row, get_predict_input(row), "m") == {"predictions": [{"a": 1}]}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A package whose file counts its runs and imports a part of itself, put off."""
    folder = tmp_path / NAME
    folder.mkdir()
    (folder / "part.py").write_text("VALUE = 3\n")
    (folder / "__init__.py").write_text(
        "runs = globals().get('runs', 0) + 1\nfrom .part import VALUE\nfrom . import other\n"
    )
    (folder / "other.py").write_text(f"import {NAME}.part\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    importlib.invalidate_caches()
    spec = find_spec(NAME)
    assert spec is not None
    sys.modules[NAME] = made = put_off(spec)
    yield made
    for name in [name for name in sys.modules if name.startswith(NAME)]:
        del sys.modules[name]


def test_a_part_is_imported_without_the_packages_file(package: ModuleType) -> None:
    part = importlib.import_module(f"{NAME}.part")
    assert part.VALUE == 3
    assert "runs" not in vars(package)
    assert package.part is part


def test_the_file_runs_once_for_the_first_missing_name(package: ModuleType) -> None:
    part = importlib.import_module(f"{NAME}.part")
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: package.VALUE, range(8)))
    assert (found, package.runs) == ([3] * 8, 1)
    assert sys.modules[f"{NAME}.part"] is part
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing
    assert package.runs == 1


def test_pythons_own_questions_do_not_run_it(package: ModuleType) -> None:
    assert not hasattr(package, "__wrapped__")
    assert "runs" not in vars(package)


def test_a_file_that_fails_says_why_to_everyone_who_asks(package: ModuleType) -> None:
    assert package.__file__ is not None
    file = Path(package.__file__)
    text = file.read_text()
    file.write_text("import no_such_module_of_a_test\n")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module_of_a_test"):
            _ = package.VALUE
    file.write_text(text + "# longer, so that it is compiled again\n")
    assert package.VALUE == 3


def test_threads_that_wait_for_each_others_imports_both_go_on(
    package: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One imports a part, which asks the package for a name. The other has asked already, and the
    package's file imports the part."""
    assert package.__file__ is not None
    folder, importing, running = Path(package.__file__).parent, threading.Event(), threading.Event()
    monkeypatch.setitem(sys.modules, "events_of_a_test", made := ModuleType("events_of_a_test"))
    vars(made).update(importing=importing, running=running, patience_s=PATIENCE_S)
    (folder / "asking.py").write_text(
        "from events_of_a_test import importing, patience_s, running\n"
        f"import {NAME}\nimporting.set()\nassert running.wait(patience_s)\n"
        f"found = getattr({NAME}, 'VALUE', None)\n"
    )
    (folder / "__init__.py").write_text(
        "from events_of_a_test import importing, patience_s, running\n"
        "assert importing.wait(patience_s)\nrunning.set()\n"
        f"import {NAME}.asking\nVALUE = 3\n"
    )
    works = (lambda: importlib.import_module(f"{NAME}.asking"), lambda: package.VALUE)
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert package.VALUE == 3


def test_a_part_waits_for_a_package_that_comes_first(package: ModuleType) -> None:
    del sys.modules[NAME]
    spec = find_spec(NAME)
    assert spec is not None
    sys.modules[NAME] = whole = put_off(spec, comes_first=True)
    assert importlib.import_module(f"{NAME}.other").__name__ == f"{NAME}.other"
    assert (whole.runs, whole.VALUE, whole.other) == (1, 3, sys.modules[f"{NAME}.other"])
    importlib.import_module(f"{NAME}.part")
    assert whole.runs == 1


@pytest.mark.parametrize("before", ["", "import pandas.core.frame", "from pandas import DataFrame"])
def test_pandas_is_imported_for_kserves_frames_and_whole(before: str) -> None:
    program = f"{PANDAS}{before}\n{FRAMES}"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_kserve_is_given_pandas_that_is_imported_before_it() -> None:
    program = f"import pandas{PANDAS.replace('not in', 'in')}{FRAMES}"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_kserves_other_names_are_there_when_they_are_asked_for() -> None:
    ended = subprocess.run([sys.executable, "-c", AFTERWARDS], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
