"""NVRTC's machine code is compiled once and then read from where Triton keeps its own; needs NVRTC,
which comes with torch for CUDA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from predictors.compute.kernels import cuda_code
from predictors.compute.kernels.cuda_code import machine_code

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SOURCE = 'extern "C" __global__ void fill(float *out) { out[threadIdx.x] = VALUE; }'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_code_is_compiled_once_for_a_source_its_macros_and_an_architecture(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = machine_code(SOURCE, {"VALUE": 1}, "sm_90a")
    other = machine_code(SOURCE, {"VALUE": 2}, "sm_90a")
    assert first != other
    assert len(list(folder.glob(f"*/{cuda_code.FILE}"))) == 2
    monkeypatch.delattr(cuda_code, "_compiled")
    assert machine_code(SOURCE, {"VALUE": 1}, "sm_90a") == first
    with pytest.raises(NameError):
        machine_code(SOURCE, {"VALUE": 1}, "sm_90")


def test_a_source_that_does_not_compile_raises_with_the_compilers_words(folder: Path) -> None:
    with pytest.raises(RuntimeError, match=r"VALUE.*undefined"):
        machine_code(SOURCE, {}, "sm_90a")
    assert not list(folder.glob(f"*/{cuda_code.FILE}"))


def test_a_folder_that_cant_be_written_costs_the_next_start_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "file").write_text("no folder")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder / "file"))
    assert machine_code(SOURCE, {"VALUE": 1}, "sm_90a")
    assert "can't be read" in caplog.text
