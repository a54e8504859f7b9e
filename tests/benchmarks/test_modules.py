"""Every benchmark module can be imported on a machine without a GPU, and starts nothing."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.common import paths

IMPORTS = """
import importlib, sys
import torch
for name in sys.argv[2:]:
    sys.argv[1:2] = ["1"]  # echo_bare takes its port from the command line, before KServe does
    importlib.import_module(name)
assert not torch.cuda.is_initialized()
"""


def test_every_module_is_imported_without_a_gpu() -> None:
    files = sorted((paths.ROOT / "benchmarks").rglob("*.py"))
    names = [".".join(file.relative_to(paths.ROOT).with_suffix("").parts) for file in files]
    names = [name.removesuffix(".__init__") for name in names]
    assert "benchmarks.serving.echo_bare" in names
    assert "benchmarks.flux.__main__" in names
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, "1", *names],
        cwd=paths.ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_shared_code_knows_no_model() -> None:
    for file in (paths.ROOT / "benchmarks" / "common").glob("*.py"):
        text = file.read_text()
        for folder in ("flux", "qwen_vl", "serving", "alternate"):
            assert f"benchmarks.{folder}" not in text.replace("`benchmarks.", "`"), file
