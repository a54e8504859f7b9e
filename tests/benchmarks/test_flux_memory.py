"""The benchmark of memory runs at the embedded size, and its source draws what the loader asks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.flux import memory
from benchmarks.flux.random_weights import TOY, write_folder
from predictors.compute.kernels.fp8 import E4M3
from predictors.diffusion.request import FP8
from predictors.models.flux.weights import load_parts


def test_a_row_is_measured_in_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    memory.main(["--one", "high,turbo:fp8", "--toy", "--device", "cpu"])
    row = json.loads(capsys.readouterr().out)
    assert set(row["tiers"]) == {"high", "turbo"}
    assert row["text_encoders_ms"] > 0
    assert row["captures_after_ready"] == 0


def test_weights_are_drawn_when_they_are_read(tmp_path: Path) -> None:
    model = memory.model_in(write_folder(tmp_path / "dev", TOY), torch.device("cpu"))
    place = memory.placement_for(torch.device("cpu"))
    parts = load_parts(model.config, place, (FP8,), model._open_component, fp8_conditioning=True)
    weight = parts.conditioning.modulation.weight
    assert weight.dtype == E4M3
    assert weight.float().std() > 0
    assert parts.t5.shared.weight.std() > 0
