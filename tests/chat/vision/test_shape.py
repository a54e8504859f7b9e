"""The sizes that all vision towers share, from a config to the shapes of two models."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from predictors.chat.vision.shape import ROPE_THETA, TowerShape

VISION = {
    "depth": 3,
    "hidden_size": 32,
    "num_heads": 4,
    "intermediate_size": 5,
    "out_hidden_size": 6,
    "patch_size": 7,
    "temporal_patch_size": 2,
    "in_channels": 9,
    "spatial_merge_size": 10,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Windowed(TowerShape):
    window: int


def test_each_number_of_the_config_is_the_one_of_its_name() -> None:
    shape = TowerShape.of(VISION)
    assert (shape.depth, shape.hidden, shape.heads, shape.mlp, shape.out) == (3, 32, 4, 5, 6)
    assert (shape.patch, shape.temporal_patch, shape.channels, shape.merge) == (7, 2, 9, 10)
    assert (shape.head_dim, shape.patch_values) == (8, 9 * 7 * 7)


def test_a_model_adds_fields_of_its_own() -> None:
    assert Windowed.of(VISION, window=11) == Windowed(
        depth=3, hidden=32, heads=4, mlp=5, out=6, patch=7, temporal_patch=2, channels=9, merge=10,
        window=11,
    )  # fmt: skip


@pytest.mark.parametrize("name", VISION)
def test_an_absent_number_is_not_made_up(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        TowerShape.of({other: value for other, value in VISION.items() if other != name})


@pytest.mark.parametrize("rope", [None, {}, {"rope_type": "default"}])
def test_the_base_of_the_frequencies_is_that_of_the_release_unless_given(rope: object) -> None:
    assert TowerShape.of({**VISION, "rope_parameters": rope}).rope_theta == ROPE_THETA
    given = TowerShape.of({**VISION, "rope_parameters": {"rope_theta": 100}})
    torch.testing.assert_close(given.frequencies(), torch.tensor([1.0, 0.1]))
