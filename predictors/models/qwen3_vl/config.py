"""Shapes of a Qwen3-VL checkpoint from its `config.json`, checked before anything is loaded.

Configs go through transformers' own classes, so that both the hub's form (`rope_scaling`,
`torch_dtype`) and that of transformers 5 (`rope_parameters`) load. A value that transformers would
answer otherwise is refused with its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from predictors.chat.decoder.decoder import DecoderShape
from predictors.chat.decoder.rotary import axes_interleaved
from predictors.chat.decoder.weights import decoder_shape
from predictors.chat.folder import check_preprocessor, parts_of, read_config
from predictors.compute.checkpoint.folder import WIDTH, check_numbers, check_rules, reading, shown
from predictors.errors import EngineFailed
from predictors.models.qwen3_vl.vision.grid import ROPE_THETA, VisionShape

MODEL_TYPE = "qwen3_vl"
LAYERS = (1, 1000)
TEXT: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), LAYERS),
    **dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size", "head_dim"), WIDTH),
    "max_position_embeddings": (1, 2**24),
}
VISION: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("depth", "num_heads", "patch_size", "temporal_patch_size"), LAYERS),
    **dict.fromkeys(("hidden_size", "intermediate_size", "out_hidden_size"), WIDTH),
    **dict.fromkeys(("spatial_merge_size", "in_channels"), LAYERS),
    "num_position_embeddings": WIDTH,
}
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
SECTIONS = (24, 20, 20)


def read_shapes(checkpoint: Path) -> tuple[dict[str, Any], DecoderShape, VisionShape]:
    """The raw `config.json` and the shapes it describes. Raises `InvalidRequest` for another model,
    and `EngineFailed` for a folder that would be served wrong."""
    raw = read_config(checkpoint, MODEL_TYPE)
    parts = parts_of(raw)
    check_numbers(parts["text_config"], "config.json: text_config", TEXT)
    check_numbers(parts["vision_config"], "config.json: vision_config", VISION)
    _check_deepstack(parts["vision_config"].get("deepstack_visual_indexes"))
    check_preprocessor(checkpoint, parts["vision_config"])
    with reading("config.json"):
        config = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
        vision = _vision_shape(config.vision_config)
        check_shapes(config.text_config, config.vision_config)
        text = decoder_shape(
            config,
            config.text_config.head_dim,
            axes_interleaved(config.text_config.rope_parameters.get("mrope_section", SECTIONS)),
            qkv_bias=False,
            qk_norm=True,
            deepstack=len(vision.deepstack),
        )
    return raw, text, vision


def check_shapes(text: Any, vision: Any) -> None:
    """Raise `EngineFailed` for numbers that don't fit together; all defaults are filled in."""
    rope = text.rope_parameters or {}
    levels = list(vision.deepstack_visual_indexes)
    rules = {
        "num_attention_heads must be a multiple of num_key_value_heads": (
            text.num_attention_heads % text.num_key_value_heads == 0
        ),
        "mrope_section must add up to half a head": (
            2 * sum(rope.get("mrope_section", SECTIONS)) == text.head_dim
        ),
        "mrope_interleaved must be true": rope.get("mrope_interleaved", True) is True,
        "attention_bias must be false": not text.attention_bias,
        "vision_config.hidden_size must be a multiple of four times num_heads": (
            vision.hidden_size % (4 * vision.num_heads) == 0
        ),
        "vision_config.out_hidden_size must be hidden_size": (
            vision.out_hidden_size == text.hidden_size
        ),
        "vision_config.num_position_embeddings must be a square": (
            isqrt(vision.num_position_embeddings) ** 2 == vision.num_position_embeddings
        ),
        "vision_config.deepstack_visual_indexes must ascend and be blocks of the vision tower": (
            levels == sorted({i for i in levels if i < vision.depth})
        ),
        "deepstack_visual_indexes must be at most num_hidden_layers": (
            len(levels) <= text.num_hidden_layers
        ),
        f"hidden_act must be {' and '.join(ACTIVATIONS)}": (
            (text.hidden_act, vision.hidden_act) == ACTIVATIONS
        ),
    }
    check_rules(rules, "config.json")


def _check_deepstack(found: object) -> None:
    named = found is None or (
        isinstance(found, list)
        and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in found)
    )
    if not named:
        raise EngineFailed(
            f"config.json: vision_config: deepstack_visual_indexes is {shown(found)}, not a list "
            "of blocks"
        )


def _vision_shape(vision: Any) -> VisionShape:
    rope = getattr(vision, "rope_parameters", None) or {}
    return VisionShape(
        depth=vision.depth,
        hidden=vision.hidden_size,
        heads=vision.num_heads,
        mlp=vision.intermediate_size,
        out=vision.out_hidden_size,
        patch=vision.patch_size,
        temporal_patch=vision.temporal_patch_size,
        channels=vision.in_channels,
        merge=vision.spatial_merge_size,
        table_side=isqrt(vision.num_position_embeddings),
        deepstack=tuple(vision.deepstack_visual_indexes),
        rope_theta=float(rope.get("rope_theta", ROPE_THETA)),
    )
