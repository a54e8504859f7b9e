"""A start imports what it needs until its models are made, and nothing of these lists. They name
modules, not seconds, so that a busy machine fails no test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.product.conftest import CHECKPOINTS

PATIENCE_S = 300.0
UNUSED = (
    # KServe's client of Kubernetes, which its package imports, with 100 classes of resources
    "kserve.api", "kserve.api_client", "kserve.models", "kubernetes", "requests", "jsonschema",
    # for two functions of KServe's that make frames
    "pandas.core", "pytz",
    # defaults of configs are a table of ours
    "diffusers",
    # imported by what is turned on: traces, TLS, signed pictures, films, reports to the cluster
    "opentelemetry.sdk", "cryptography", "c2pa", "av",
    # of torch and transformers: imported by the first compilation, or never
    "torch._inductor.compile_fx", "torch._inductor.codegen", "torch.utils.tensorboard",
    # a folder as hubs have it is read without them
    "transformers", "huggingface_hub", "torchvision", "sentencepiece", "tiktoken",
    "torch._dynamo", "torch.distributed.tensor", "sympy", "scipy", "sklearn",
    # installed for tests and benchmarks
    "matplotlib", "openai", "tritonclient", "compressed_tensors", "hypothesis", "pytest",
)  # fmt: skip
OF_OTHERS = {
    "shapes-flux": ("llguidance", "predictors.chat", "predictors.models.qwen2_5_vl"),
    "shapes-qwen-vl": ("predictors.diffusion", "predictors.models.flux"),
}
"""Modules of the other room."""
PROGRAM = """
import json, sys
from pathlib import Path
import predictors.operators.serve
from predictors.__main__ import build
from predictors.settings import Settings
build("model", Path(sys.argv[1]), Settings())
print(json.dumps(sorted(sys.modules)))
"""


def imported(folder: str) -> set[str]:
    """All modules of a process that has made the server's parts and one model, before its load."""
    command = [sys.executable, "-c", PROGRAM, str(CHECKPOINTS / folder)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ended.returncode == 0, ended.stderr
    return set(json.loads(ended.stdout.splitlines()[-1]))


@pytest.mark.parametrize("folder", OF_OTHERS)
def test_a_start_imports_nothing_that_it_does_not_use(folder: str) -> None:
    found = imported(folder)
    assert {"torch", "kserve.model", "predictors.protocol.server"} <= found  # it was a start
    assert not found & {*UNUSED, *OF_OTHERS[folder]}
