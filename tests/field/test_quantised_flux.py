"""A FLUX folder with quantised parts draws as a folder that holds the dequantised weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from predictors.compute.device.placement import Placement
from predictors.diffusion.request import ImageParameters
from predictors.errors import InvalidRequest
from predictors.models.flux.config import read_checkpoint
from predictors.models.flux.folder import part_folders
from predictors.models.flux.quantize import quantize_checkpoint
from predictors.models.flux.weights import load_parts
from tests.compute.checkpoint.quantised.folders import dequantised, quantised
from tests.compute.checkpoint.quantised.writers import METHODS, Method, awq
from tests.diffusion.driver import open_driver
from tests.variants import FLUX, Change, Tensors, config, variant, weights

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
T5, CLIP = "text_encoder_2/model.safetensors", "text_encoder/model.safetensors"
BLOCKS = r"^(single_)?transformer_blocks\..*((to|add)_\w+(\.0)?|net\..*|proj_\w+)\.weight$"

ALL = r"(linear(_[12])?|embedder|proj_out|attn\.(to|add)_\w+(\.0)?|net\..*|proj_mlp)\.weight$"
LINEARS = r"(SelfAttention\.[qkvo]|wi_[01]|(fc[12]|_proj))\.weight$"
CONFIGS = {
    TRANSFORMER: "transformer/config.json",
    T5: "text_encoder_2/config.json",
    CLIP: "text_encoder/config.json",
}
Load = Callable[[Path], dict[str, torch.Tensor]]
CASES: dict[str, tuple[str, str, Method]] = {
    "T5 in nf4": (T5, LINEARS, METHODS["nf4"]),
    "T5 in int8": (T5, LINEARS, METHODS["int8 of bitsandbytes"]),
    "T5 in fp8": (T5, LINEARS, METHODS["fp8 per tensor, static inputs"]),
    "T5 by GPTQ": (T5, LINEARS, METHODS["GPTQ 4-bit, reordered"]),
    "CLIP in int4": (CLIP, LINEARS, METHODS["packed int4 in groups"]),
    "transformer in nested nf4": (TRANSFORMER, ALL, METHODS["nf4, nested"]),
    "transformer as ComfyUI scales it": (TRANSFORMER, BLOCKS, METHODS["fp8 as ComfyUI stores it"]),
    "transformer by AWQ": (TRANSFORMER, BLOCKS, awq(32)),
    "transformer in fp8 per tensor": (
        TRANSFORMER,
        BLOCKS,
        METHODS["fp8 per tensor, static inputs"],
    ),
    "all of the transformer in fp8": (TRANSFORMER, ALL, METHODS["fp8 per channel"]),
}


@pytest.fixture(scope="module")
def load() -> Load:
    """The weights of all modules of a folder, as the server loads them."""
    described, _ = read_checkpoint(FLUX)
    placement = Placement(torch.device("cpu"), torch.float32, "off")

    def loaded(folder: Path) -> dict[str, torch.Tensor]:
        own = replace(described, folders=part_folders(folder, {}))
        parts = load_parts(own, placement)
        modules = {
            "transformer": parts.transformers["base"],
            "conditioning": parts.conditioning,
            "clip": parts.clip,
            "t5": parts.t5,
            "decoder": parts.decoder,
        }
        return {
            f"{part}.{name}": tensor
            for part, module in modules.items()
            for name, tensor in module.state_dict().items()
        }

    return loaded


def folders(tmp_path: Path, *cases: str) -> tuple[Path, Path]:
    stored = [quantised(*CASES[case], CONFIGS[CASES[case][0]]) for case in cases]
    plain = [dequantised(*CASES[case]) for case in cases]
    return variant(FLUX, tmp_path / "stored", *stored), variant(FLUX, tmp_path / "plain", *plain)


@pytest.mark.parametrize("case", CASES)
def test_all_weights_are_those_that_the_owner_makes(tmp_path: Path, load: Load, case: str) -> None:
    stored, plain = folders(tmp_path, case)
    found, wanted = load(stored), load(plain)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
    assert not read_checkpoint(stored)[0].is_quantized  # all tiers are possible


def test_pictures_are_those_of_the_dequantised_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = ImageParameters(prompt="two red circles", seed=3, num_inference_steps=2)
    stored, plain = folders(tmp_path, "T5 in nf4", "transformer as ComfyUI scales it")
    with caplog.at_level(logging.INFO):
        drawn = open_driver(stored).draw(asked)
    assert np.array_equal(drawn, open_driver(plain).draw(asked))
    assert not np.array_equal(drawn, open_driver(FLUX).draw(asked))
    said = caplog.text
    assert "transformer: quantised (scaled FP8, as ComfyUI stores it), served in float32: " in said
    assert "text_encoder_2: quantised (bitsandbytes nf4), served in float32: " in said


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_transformer_that_was_cast_as_a_whole_is_served(
    tmp_path: Path, load: Load, kind: torch.dtype
) -> None:
    def cast(back: torch.dtype) -> Change:
        def edit(tensors: Tensors) -> None:
            tensors.update({name: tensor.to(kind).to(back) for name, tensor in tensors.items()})

        return weights(TRANSFORMER, edit)

    found = load(variant(FLUX, tmp_path / "stored", cast(kind)))
    wanted = load(variant(FLUX, tmp_path / "plain", cast(torch.float32)))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_a_quantised_transformer_is_not_quantised_again(tmp_path: Path) -> None:
    file, linears, method = CASES["transformer in nested nf4"]
    folder = variant(FLUX, tmp_path / "c", quantised(file, linears, method, CONFIGS[file]))
    with pytest.raises(InvalidRequest, match=r"quantised already \(bitsandbytes nf4\)"):
        quantize_checkpoint(folder, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_our_own_fp8_folder_stays_in_fp8(tmp_path: Path) -> None:
    """`quantize` writes exactly the linears of the blocks, with scales per channel and token."""
    way = METHODS["fp8 per channel"]
    native = quantised(TRANSFORMER, BLOCKS, way, CONFIGS[TRANSFORMER])
    dynamic = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
    named = dict(way.config or {})
    (group,) = named["config_groups"].values()
    named["config_groups"] = {"group_0": group | {"input_activations": dynamic}}
    said = config(CONFIGS[TRANSFORMER], quantization_config=named)
    folder = variant(FLUX, tmp_path / "c", native, said)
    assert read_checkpoint(folder)[0].is_quantized
    assert open_driver(folder, tiers="high").limits.tiers.default == "high"
