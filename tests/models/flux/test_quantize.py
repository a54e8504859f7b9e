"""A checkpoint that was saved in fp8 draws what one that is quantised at load draws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from predictors.__main__ import main
from predictors.diffusion.request import ImageParameters
from predictors.errors import EngineFailed, InvalidRequest
from predictors.models.flux import quantize
from predictors.models.flux.config import read_checkpoint
from predictors.models.flux.quantize import quantize_checkpoint
from predictors.settings import InvalidSetting
from tests.diffusion.driver import CHECKPOINT, open_driver
from tests.variants import nested, variant

IMAGE = ImageParameters("a large red circle", num_inference_steps=3, seed=3, tier="high")


@pytest.fixture(scope="module")
def narrow_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("narrow") / "shapes-flux-fp8"
    assert main(["quantize", str(CHECKPOINT), str(target)]) == 0
    return target


def test_a_saved_fp8_checkpoint_draws_as_one_quantised_at_load(narrow_checkpoint: Path) -> None:
    at_load = open_driver(tiers="lossless,high", max_sequence_length=16)
    saved = open_driver(narrow_checkpoint, tiers="high", max_sequence_length=16)
    assert np.array_equal(saved.draw(IMAGE), at_load.draw(IMAGE))


def test_block_linears_are_fp8_with_scales_and_nothing_else(narrow_checkpoint: Path) -> None:
    stored = load_file(narrow_checkpoint / "transformer" / "diffusion_pytorch_model.safetensors")
    first = "single_transformer_blocks.0.attn.to_q.weight"
    assert stored[first].dtype == torch.float8_e4m3fn
    assert stored[f"{first}_scale"].shape == (stored[first].shape[0], 1)
    assert stored[f"{first}_scale"].dtype == torch.float32
    assert stored["x_embedder.weight"].dtype != torch.float8_e4m3fn
    assert stored["single_transformer_blocks.0.norm.linear.weight"].dtype != torch.float8_e4m3fn
    narrow = {name for name, tensor in stored.items() if tensor.dtype == torch.float8_e4m3fn}
    assert {f"{name}_scale" for name in narrow} == {n for n in stored if n.endswith("_scale")}


def test_an_fp8_checkpoint_serves_fp8_tiers_only(narrow_checkpoint: Path) -> None:
    assert read_checkpoint(narrow_checkpoint)[0].is_quantized
    with pytest.raises((InvalidSetting, EngineFailed), match="lossless"):
        open_driver(narrow_checkpoint, tiers="lossless,high")
    assert open_driver(narrow_checkpoint, tiers="high,turbo").limits.tiers.default == "high"


def test_another_scheme_is_refused_by_name(narrow_checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((narrow_checkpoint / "transformer" / "config.json").read_text())
    assert config["quantization_config"]["format"] == "float-quantized"
    change = nested("transformer/config.json", "quantization_config", quant_method="torchao")
    with pytest.raises(EngineFailed, match="torchao"):
        read_checkpoint(variant(narrow_checkpoint, tmp_path / "copy", change))


def test_a_full_disk_is_named_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr(quantize, "save_file", full)
    with pytest.raises(EngineFailed, match="narrow can't be written: No space left on device"):
        quantize_checkpoint(CHECKPOINT, tmp_path / "narrow")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_and_nothing_quantised_twice(
    narrow_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match="exists already"):
        quantize_checkpoint(CHECKPOINT, tmp_path)
    with pytest.raises(InvalidRequest, match="quantised already"):
        quantize_checkpoint(narrow_checkpoint, tmp_path / "twice")
    assert not (tmp_path / "twice").exists()
