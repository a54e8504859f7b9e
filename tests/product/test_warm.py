"""`python -m predictors warm`, whole processes over the embedded checkpoints.

That a start which may only read what was kept compiles nothing is in test_compile_cache.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tests.product.conftest import CHECKPOINTS
from tests.variants import Change, variant, weights, write

FORGOTTEN = {"TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "PREDICTORS_COMPUTE_COMPILE"}
SMALL = {
    "PREDICTORS_FLUX_SLOTS": "1",
    "PREDICTORS_FLUX_SIZES": "64x64",
    "PREDICTORS_FLUX_MAX_SEQUENCE_LENGTH": "16",
    "PREDICTORS_FLUX_TIERS": "lossless",
    "OMP_NUM_THREADS": "1",
}
DEAF = """
import socket, sys
from predictors.__main__ import main
def refuse(*_):
    sys.exit("it listens")
socket.socket.listen = refuse
code = main(sys.argv[1:])
sys.exit("the server was imported" if "predictors.protocol.server" in sys.modules else code)
"""
FLUX = f"--model=flux={CHECKPOINTS / 'shapes-flux'}"
QWEN = f"--model=qwen-vl={CHECKPOINTS / 'shapes-qwen-vl'}"


def warm(
    *arguments: str, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The verb, in a process that dies of listening and has no power of root's over files."""
    command = [sys.executable, "-c", DEAF, "warm", *arguments, "--log-format=text"]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root can write everywhere, and setpriv is not installed")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    base = {name: value for name, value in os.environ.items() if name not in FORGOTTEN}
    return subprocess.run(
        command, env=base | SMALL | dict(environ or {}), capture_output=True, text=True, timeout=500
    )


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "compiled"


def test_every_model_is_warmed_and_nothing_listens(kept: Path) -> None:
    # the verb warms all the same
    minimal = {"PREDICTORS_FLUX_WARM": "minimal", "PREDICTORS_QWEN_VL_WARM": "minimal"}
    done = warm(FLUX, QWEN, environ=minimal | {"PREDICTORS_COMPUTE_CACHE_DIR": str(kept)})
    assert done.returncode == 0, done.stderr
    assert done.stdout == "flux is warm\nqwen-vl is warm\n"
    for model in ("flux", "qwen-vl"):
        steps = re.findall(rf"warming: {model} .*\((\d+)/(\d+)\)", done.stderr)
        assert steps
        assert steps[-1][0] == steps[-1][1]
    assert len(list(kept.iterdir())) == 1  # this machine's


def test_the_report_of_a_warm_up_is_json_and_the_log_is_apart_from_it() -> None:
    done = warm(QWEN, "--json")
    assert done.returncode == 0, done.stderr
    (warmed,) = json.loads(done.stdout)["models"]
    assert warmed["name"] == "qwen-vl"
    assert warmed["seconds"] > 0
    assert "warming: qwen-vl" in done.stderr


def test_a_folder_that_would_keep_nothing_is_refused(kept: Path) -> None:
    """Which folders those are is in test_compile_cache.py."""
    kept.write_text("")
    done = warm(FLUX, environ={"PREDICTORS_COMPUTE_CACHE_DIR": str(kept)})
    assert done.returncode == 2
    assert "error: PREDICTORS_COMPUTE_CACHE_DIR is a folder that can't be written" in done.stderr
    assert done.stdout == ""


def nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"].fill_(float("nan"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (write("model.safetensors", ""), "error: broken/model.safetensors is broken or cut short"),
        (weights("model.safetensors", nan), "error: qwen-vl can't be warmed: "),
    ],
    ids=["refused before it is loaded", "found out by the warm-up"],
)
def test_a_checkpoint_that_cannot_be_loaded_is_an_exit_code_and_a_sentence(
    tmp_path: Path, change: Change, said: str
) -> None:
    done = warm(
        f"--model=qwen-vl={variant(CHECKPOINTS / 'shapes-qwen-vl', tmp_path / 'broken', change)}"
    )
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
    assert done.stdout == ""
