"""A quantised Qwen folder answers as a folder that holds the dequantised weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from predictors.chat.decoder.weights import load_modules
from predictors.compute.device.placement import Placement
from predictors.models.qwen2_5_vl.model import Qwen25VLModel
from predictors.models.qwen2_5_vl.vision.tower import VisionTower, vision_slots
from tests.chat.room import Room, chat, png
from tests.compute.checkpoint.quantised.folders import dequantised, quantised
from tests.compute.checkpoint.quantised.writers import METHODS
from tests.variants import QWEN, config, nested, variant

FILE = "model.safetensors"
LANGUAGE = r"^model\.layers.*_proj\.weight$"
BOTH = r"(^model\.layers.*_proj|^visual\.blocks.*(proj|qkv))\.weight$"
IN_GROUPS = ("AWQ", "packed", "GPTQ", "nf4")  # the vision tower's 344 columns have no such groups
Load = Callable[[Path, torch.dtype], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def load() -> Load:
    """The weights of both modules of a folder, as the server loads them."""
    model = Qwen25VLModel(QWEN)

    def loaded(folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        placement = Placement(torch.device("cpu"), dtype, "off")
        decoder, vision = load_modules(
            folder, model.shape, lambda: VisionTower(model.vision), vision_slots, placement
        )
        return {**decoder.state_dict(), **vision.state_dict(prefix="visual.")}

    return loaded


def linears_of(method: str) -> str:
    return LANGUAGE if method.startswith(IN_GROUPS) else BOTH


@pytest.mark.parametrize(
    "method",
    [
        "fp8 per channel",
        "fp8 in blocks of compressed-tensors",
        "fp8 in blocks of 128",
        "int8 with zero points",
        "packed int4 with zero points",
        "AWQ",
        "GPTQ 4-bit, reordered",
        "GPTQ 8-bit",
        "nf4, nested",
        "int8 of bitsandbytes",
    ],
)
def test_all_weights_are_those_that_the_owner_makes(
    tmp_path: Path, load: Load, method: str
) -> None:
    way, linears = METHODS[method], linears_of(method)
    stored = variant(QWEN, tmp_path / "stored", quantised(FILE, linears, way))
    plain = variant(QWEN, tmp_path / "plain", dequantised(FILE, linears, way))
    found, wanted = load(stored, torch.float32), load(plain, torch.float32)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("method", ["fp8 in blocks of 128", "nf4, nested"])
def test_answers_are_those_of_the_dequantised_folder(
    tmp_path: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    way, linears = METHODS[method], linears_of(method)
    with caplog.at_level(logging.INFO):
        stored = Room.open(
            variant(QWEN, tmp_path / "stored", quantised(FILE, linears, way)), slots=1
        )
    plain = Room.open(variant(QWEN, tmp_path / "plain", dequantised(FILE, linears, way)), slots=1)
    request = chat("a red circle", png(1))
    assert stored.answer(request) == plain.answer(request)
    said = [r.getMessage() for r in caplog.records if "quantised (" in r.getMessage()]
    assert said[0].startswith("the language model: quantised (")
    assert all(", served in float32: " in line and line.count(" MiB") == 1 for line in said)
    assert ("activations are not quantised" in said[0]) == (method == "fp8 in blocks of 128")


def test_a_config_may_say_so_for_the_language_model_alone(tmp_path: Path, load: Load) -> None:
    way = METHODS["fp8 per channel"]
    stored = variant(
        QWEN,
        tmp_path / "stored",
        quantised(FILE, LANGUAGE, way),
        config("config.json", quantization_config=...),
        nested("config.json", "text_config", quantization_config=way.config),
    )
    plain = variant(QWEN, tmp_path / "plain", dequantised(FILE, LANGUAGE, way))
    found, wanted = load(stored, torch.bfloat16), load(plain, torch.bfloat16)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
