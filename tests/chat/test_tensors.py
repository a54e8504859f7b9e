"""The tensors that are computed from a chat model's config are those of transformers' module."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Qwen2_5_VLConfig,
    Qwen3VLConfig,
)

from predictors.chat.tensors import by_hub_names, decoder_tensors
from predictors.errors import EngineFailed
from predictors.models.qwen2_5_vl import folder as qwen25
from predictors.models.qwen3_vl import folder as qwen3
from tests.full_size import QWEN_3B, QWEN_7B
from tests.models.qwen3_vl.checkpoint import TEXT, TOKENS, VISION
from tests.variants import QWEN

SMALL3 = {
    "model_type": "qwen3_vl",
    "text_config": TEXT,
    "vision_config": {**VISION, "model_type": "qwen3_vl"},
    **TOKENS,
}
QWEN3_8B = {
    "model_type": "qwen3_vl",
    "text_config": {
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
        "num_key_value_heads": 8, "vocab_size": 151936,
    },
    "vision_config": {"out_hidden_size": 4096, "deepstack_visual_indexes": [8, 16, 24]},
}  # fmt: skip
CONFIGS: dict[str, tuple[ModuleType, dict[str, Any]]] = {
    "embedded": (qwen25, json.loads((QWEN / "config.json").read_text())),
    "Qwen2.5-VL-3B": (qwen25, QWEN_3B),
    "Qwen2.5-VL-7B": (qwen25, QWEN_7B),
    "a small Qwen3-VL": (qwen3, SMALL3),
    "a tied Qwen3-VL": (qwen3, {**SMALL3, "tie_word_embeddings": True}),
    "Qwen3-VL-8B": (qwen3, QWEN3_8B),
}


def computed(module: ModuleType, raw: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """From the config alone, as the folder's check does it."""
    text = {**module.TEXT_DEFAULTS, **raw.get("text_config", raw)}
    vision = {**module.VISION_DEFAULTS, **raw["vision_config"]}
    found = decoder_tensors(module.decoder_sizes(raw, text)) | module.vision_tensors(vision)
    return dict(found)


def library_config(raw: Mapping[str, Any], folder: Path) -> Any:
    """transformers' config of a `config.json`, with every default filled in."""
    (folder / "config.json").write_text(json.dumps(raw))
    return AutoConfig.from_pretrained(folder)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_tensors_are_those_of_the_librarys_module(name: str, tmp_path: Path) -> None:
    module, raw = CONFIGS[name]
    config = library_config(raw, tmp_path)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = AutoModelForImageTextToText.from_config(config)
    stored = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    if config.tie_word_embeddings:
        del stored["lm_head.weight"]
    assert computed(module, raw) == by_hub_names(stored)


@pytest.mark.parametrize(
    ("module", "config"), [(qwen25, Qwen2_5_VLConfig()), (qwen3, Qwen3VLConfig())]
)
def test_defaults_are_those_of_the_library(module: ModuleType, config: Any) -> None:
    for ours, theirs in (
        (module.TEXT_DEFAULTS, config.text_config),
        (module.VISION_DEFAULTS, config.vision_config),
    ):
        computed_there = {"layer_types": None, "sliding_window": 4096}  # of other values
        for name, value in ours.items():
            found = getattr(theirs, name)
            found = tuple(found) if isinstance(value, tuple) else found
            assert computed_there.get(name, found) == value, name


def test_a_weight_under_two_names_is_refused() -> None:
    with pytest.raises(EngineFailed, match="holds one weight twice"):
        by_hub_names({"model.norm.weight": 1, "model.language_model.norm.weight": 2})
