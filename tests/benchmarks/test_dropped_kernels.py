"""The references and the kernels of `benchmarks.dropped_kernels` agree in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from benchmarks.common import paths
from tests import triton_interpreter

dropped_kernels = pytest.importorskip("benchmarks.dropped_kernels")
assert triton_interpreter
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")

CPU = torch.device("cpu")


@pytest.mark.parametrize("each", [1, 2])
def test_heads_of_a_window_are_those_of_float32(each: int) -> None:
    given, exact = dropped_kernels.windows(CPU, torch.float32, count=2, heads=2, seed=0)
    found = dropped_kernels.attend_windows(given, each)
    assert dropped_kernels.distance(found, exact) < 1e-5


def test_attention_in_e4m3_is_as_far_from_float32_as_its_bits_are() -> None:
    given, exact = dropped_kernels.e4m3_heads(CPU, heads=2, tokens=64)
    options = dropped_kernels.e4m3_options("pointers", 4, "plain", block=32)
    found = dropped_kernels.attend_in_e4m3(given, options)
    assert 0.01 < dropped_kernels.distance(found, exact) < 0.1


def test_a_case_is_compiled_for_hopper_without_a_card() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.dropped_kernels", "--case", "window 1"],
        cwd=paths.ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["warps"] == 4
    assert facts["wgmma.mma_async"] > 0
