"""Classes near the served one are refused with what to take instead."""

from __future__ import annotations

import pytest

from predictors.cli.other_models import instead_of


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Qwen3VLMoeForConditionalGeneration", "take a dense Qwen3-VL"),
        ("Qwen3OmniMoeForConditionalGeneration", "take a Qwen3-VL"),
        ("Qwen3ForCausalLM", "take a Qwen3-VL"),
        ("Qwen3VLModel", "no head that writes text"),
        ("Qwen3VLForConditionalGeneration", ""),
    ],
)
def test_a_class_near_this_one_has_what_to_take_instead(name: str, said: str) -> None:
    found = instead_of(name)
    assert said in found
    assert bool(found) == bool(said)
