"""A server collects no garbage while it imports, and never visits again what it has loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.product.conftest import CHECKPOINTS

PATIENCE_S = 300.0
PAUSED = """
import gc
from predictors.operators.garbage import collections_paused, freeze_loaded_objects
try:
    with collections_paused():
        assert not gc.isenabled()
        made = [[] for _ in range(20_000)]
        cycle = []
        cycle.append(cycle)
        raise KeyError
except KeyError:
    pass
assert gc.isenabled() and gc.get_freeze_count() > 20_000
frozen = gc.get_freeze_count()
more = [[] for _ in range(20_000)]
freeze_loaded_objects()
assert gc.get_freeze_count() > frozen + 15_000
"""
UNTIL_THE_FIRST_LOAD = """
import gc, logging, os, sys
from predictors.__main__ import main
found = []
gc.callbacks.append(lambda phase, info: found.append(info["generation"]))

class FirstLoad(logging.Handler):
    def emit(self, record):
        if "is loading" in record.getMessage():
            print(gc.isenabled(), gc.get_freeze_count(), found.count(2), "torch" in sys.modules)
            sys.stdout.flush()
            os._exit(0)

logging.getLogger("predictors").addHandler(FirstLoad(logging.INFO))
main(["serve", "--host", "127.0.0.1", "--port", "0", "--grpc-port", "0", "--model", sys.argv[1]])
"""


def run(program: str, *arguments: str) -> str:
    """The output of a process of its own: collections are a process's."""
    command = [sys.executable, "-c", program, *arguments]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_nothing_is_collected_in_a_pause_and_what_was_made_is_frozen_also_after_an_error() -> None:
    run(PAUSED)


def test_no_full_collection_runs_before_the_first_load_of_a_server() -> None:
    folder: Path = CHECKPOINTS / "shapes-qwen-vl"
    is_enabled, frozen, full, has_torch = run(UNTIL_THE_FIRST_LOAD, f"qwen-vl={folder}").split()
    assert (is_enabled, full, has_torch) == ("True", "0", "True")
    assert int(frozen) > 200_000
