"""The tensors that are computed from a Qwen3-VL config are those of transformers' module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen3VLConfig

from predictors.models.qwen3_vl import folder
from tests.chat.library_tensors import check_defaults, computed_tensors, library_tensors
from tests.models.qwen3_vl.checkpoint import TEXT, TOKENS, VISION

SMALL: dict[str, Any] = {
    "model_type": "qwen3_vl",
    "text_config": TEXT,
    "vision_config": VISION,
    **TOKENS,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "small": SMALL,
    "tied": {**SMALL, "tie_word_embeddings": True},
    "8B": {
        "model_type": "qwen3_vl",
        "text_config": {
            "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
            "num_key_value_heads": 8, "vocab_size": 151936,
        },
        "vision_config": {"out_hidden_size": 4096, "deepstack_visual_indexes": [8, 16, 24]},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_the_tensors_are_those_of_the_librarys_module(name: str, tmp_path: Path) -> None:
    raw = CONFIGS[name]
    assert computed_tensors(folder, raw) == library_tensors(raw, tmp_path)


def test_defaults_are_those_of_the_library() -> None:
    check_defaults(folder, Qwen3VLConfig())
