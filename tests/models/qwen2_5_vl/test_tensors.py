"""The tensors that are computed from a Qwen2.5-VL config are those of transformers' module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2_5_VLConfig

from predictors.chat.tensors import by_hub_names
from predictors.errors import EngineFailed
from predictors.models.qwen2_5_vl import folder
from tests.chat.library_tensors import check_defaults, computed_tensors, library_tensors
from tests.full_size import QWEN_3B, QWEN_7B
from tests.variants import QWEN

CONFIGS: dict[str, dict[str, Any]] = {
    "embedded": json.loads((QWEN / "config.json").read_text()),
    "3B": QWEN_3B,
    "7B": QWEN_7B,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_tensors_are_those_of_the_librarys_module(name: str, tmp_path: Path) -> None:
    raw = CONFIGS[name]
    assert computed_tensors(folder, raw) == library_tensors(raw, tmp_path)


def test_defaults_are_those_of_the_library() -> None:
    check_defaults(folder, Qwen2_5_VLConfig())


@pytest.mark.parametrize(
    "wrapper", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod.", "model."]
)
def test_a_checkpoint_that_was_saved_through_a_wrapper_has_the_same_tensors(wrapper: str) -> None:
    plain = computed_tensors(folder, QWEN_7B)
    assert by_hub_names({f"{wrapper}{name}": shape for name, shape in plain.items()}) == plain


def test_a_weight_under_two_names_is_refused() -> None:
    with pytest.raises(EngineFailed, match="holds one weight twice"):
        by_hub_names({"model.norm.weight": 1, "model.language_model.norm.weight": 2})
