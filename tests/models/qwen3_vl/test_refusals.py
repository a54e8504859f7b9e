"""A Qwen3-VL folder that would be answered wrong is refused by name before weights are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from predictors.compute.device.placement import place
from predictors.errors import EngineFailed, InvalidRequest, ServingError
from predictors.models.qwen3_vl.model import Qwen3VLModel
from predictors.settings import ComputeSettings
from tests.chat.room import Room, chat, png
from tests.models.qwen3_vl.checkpoint import PREPROCESSOR, TEXT
from tests.models.qwen3_vl.conftest import open_room
from tests.variants import (
    Change,
    Refused,
    added,
    config,
    dropped,
    nested,
    plain_message,
    recast,
    variant,
    weights,
    without,
    write,
)

WEIGHTS = "model.safetensors"
LAYER = "model.language_model.layers.0.self_attn"
VISION = "model.visual"
ROPE = TEXT["rope_parameters"]
ONE = torch.ones(1)


def text(**values: Any) -> Change:
    return nested("config.json", "text_config", **values)


def vision(**values: Any) -> Change:
    return nested("config.json", "vision_config", **values)


def preprocessor(**values: Any) -> Change:
    return write("preprocessor_config.json", json.dumps({**PREPROCESSOR, **values}))


CONFIGS: Refused = {
    "no interleaving": (
        text(rope_parameters={**ROPE, "mrope_interleaved": False}),
        ("config.json", "mrope_interleaved must be true"),
    ),
    "sections of another head": (
        text(rope_parameters={**ROPE, "mrope_section": [6, 5, 4]}),
        ("mrope_section must add up to half a head",),
    ),
    "biases": (text(attention_bias=True), ("attention_bias must be false",)),
    "key heads that don't divide": (
        text(num_key_value_heads=3),
        ("num_attention_heads must be a multiple of num_key_value_heads",),
    ),
    "another activation": (
        vision(hidden_act="relu"),
        ("hidden_act must be silu and gelu_pytorch_tanh",),
    ),
    "features of another width": (
        vision(out_hidden_size=128),
        ("out_hidden_size must be hidden_size",),
    ),
    "an oblong position table": (
        vision(num_position_embeddings=60),
        ("num_position_embeddings must be a square",),
    ),
    "a level that is no block": (
        vision(deepstack_visual_indexes=[0, 4]),
        ("deepstack_visual_indexes must ascend and be blocks",),
    ),
    "levels out of order": (
        vision(deepstack_visual_indexes=[2, 0]),
        ("deepstack_visual_indexes must ascend",),
    ),
    "levels that are no list": (
        vision(deepstack_visual_indexes="all"),
        ("deepstack_visual_indexes is 'all'",),
    ),
    "a width that is no number": (
        text(head_dim="128"),
        ("head_dim is '128'",),
    ),
    "quantised": (
        config("config.json", quantization_config={"quant_method": "hqq"}),
        ("the language model is quantised (HQQ",),
    ),
    "patches of another size": (
        preprocessor(patch_size=14),
        ("patch_size is 14, but patch_size of the vision tower 16",),
    ),
    "another image processor": (
        preprocessor(image_processor_type="ViTImageProcessor"),
        ("image_processor_type is 'ViTImageProcessor'",),
    ),
    "no chat tokens": (
        config("config.json", image_token_id=1),
        ("image_token_id is 1, the tokenizer's <|image_pad|> 812",),
    ),
}


@pytest.mark.parametrize(("change", "said"), CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_is_not_served_is_refused_by_name(
    checkpoint: Path, tmp_path: Path, change: Change, said: tuple[str, ...]
) -> None:
    folder = variant(checkpoint, tmp_path / "c", change)
    with pytest.raises(ServingError) as failure:
        Qwen3VLModel(folder)
    message = plain_message(failure.value, folder)
    for words in said:
        assert words in message


@pytest.mark.parametrize("kind", ["qwen3_vl_moe", "qwen2_5_vl"])
def test_another_model_is_refused(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    folder = variant(checkpoint, tmp_path / "c", config("config.json", model_type=kind))
    with pytest.raises(InvalidRequest, match=f"is a '{kind}', not a qwen3_vl"):
        Qwen3VLModel(folder)


TENSORS: Refused = {
    "a weight of the decoder is missing": (
        weights(WEIGHTS, dropped(f"{LAYER}.q_norm.weight")),
        ("lacks", "model.layers.0.self_attn.q_norm.weight"),
    ),
    "a weight of the vision tower is missing": (
        weights(WEIGHTS, dropped(f"{VISION}.deepstack_merger_list.1.norm.bias")),
        ("lacks", "visual.deepstack_merger_list.1.norm.bias"),
    ),
    "a bias that has no place": (
        weights(WEIGHTS, added({f"{LAYER}.q_proj.bias": torch.ones(128)})),
        ("the language model holds 1 tensors that have no place", "q_proj.bias"),
    ),
    "a third level": (
        weights(WEIGHTS, added({f"{VISION}.deepstack_merger_list.2.norm.bias": ONE})),
        ("the vision tower holds 1 tensors that have no place", "deepstack_merger_list.2"),
    ),
    "another position table": (
        vision(num_position_embeddings=36),
        ("visual.pos_embed.weight has shape [64, 48]", "[36, 48]"),
    ),
    "float8": (
        weights(WEIGHTS, recast(f"{LAYER}.q_proj.weight", torch.float8_e4m3fn)),
        ("the language model is quantised", "q_proj.weight"),
    ),
    "scales": (
        weights(WEIGHTS, added({f"{VISION}.blocks.0.attn.qkv.weight_scale_inv": ONE})),
        ("the vision tower is quantised (FP8 in blocks", "weight_scale_inv"),
    ),
    "an adapter": (
        weights(WEIGHTS, added({f"{LAYER}.q_proj.lora_A.weight": ONE})),
        ("tensors of an adapter", "lora_A"),
    ),
}


@pytest.mark.parametrize(("change", "said"), TENSORS.values(), ids=TENSORS)
def test_a_tensor_without_its_place_is_refused_by_name(
    checkpoint: Path, tmp_path: Path, change: Change, said: tuple[str, ...]
) -> None:
    folder = variant(checkpoint, tmp_path / "c", change)
    model, placement = Qwen3VLModel(folder), place(ComputeSettings(device="cpu"))
    with pytest.raises(EngineFailed) as failure:
        model.load(placement)
    message = plain_message(failure.value, folder)
    for words in said:
        assert words in message


def test_without_a_preprocessor_pictures_are_prepared_as_the_release_does(
    checkpoint: Path, room: Room, tmp_path: Path
) -> None:
    """Not as the class that it shares with Qwen2.5-VL: that has other patches and another mean."""
    bare = variant(checkpoint, tmp_path / "c", without("preprocessor_config.json"))
    asked = chat("Describe this picture.", png(1, 256, 256))  # the least that the release reads
    assert open_room(bare).answer(asked) == room.answer(asked)
