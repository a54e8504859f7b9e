"""Shapes of a Qwen2.5-VL checkpoint from its `config.json`, checked before anything is loaded.

Configs go through transformers' own classes, so that both the nested form and the hub's flat one
(`rope_scaling`, `torch_dtype`) load. A value that transformers would answer otherwise is refused
with its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from predictors.chat.decoder.decoder import DecoderShape
from predictors.chat.decoder.rotary import axes_in_blocks
from predictors.chat.decoder.weights import decoder_shape
from predictors.chat.folder import check_preprocessor, parts_of, read_config
from predictors.compute.checkpoint.folder import WIDTH, check_numbers, check_rules, reading
from predictors.errors import InvalidRequest
from predictors.models.qwen2_5_vl.vision.grid import ROPE_THETA, VisionShape

MODEL_TYPE = "qwen2_5_vl"
SECTIONS = (16, 24, 24)
LAYERS = (1, 1000)
TEXT: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), LAYERS),
    **dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), WIDTH),
    "max_position_embeddings": (1, 2**24),
}
VISION: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("depth", "num_heads", "patch_size", "temporal_patch_size"), LAYERS),
    **dict.fromkeys(("hidden_size", "intermediate_size", "out_hidden_size", "window_size"), WIDTH),
    **dict.fromkeys(("spatial_merge_size", "in_channels", "in_chans"), LAYERS),
}


def read_shapes(checkpoint: Path) -> tuple[dict[str, Any], DecoderShape, VisionShape]:
    """The raw `config.json` and the shapes it describes. Raises `InvalidRequest` for a model or an
    option that is not served, and `EngineFailed` for a folder that would be served wrong."""
    raw = read_config(checkpoint, MODEL_TYPE)
    parts = parts_of(raw)
    check_numbers(parts["text_config"], "config.json", TEXT)
    check_numbers(parts["vision_config"], "config.json: vision_config", VISION)
    check_preprocessor(checkpoint, parts["vision_config"])
    with reading("config.json"):
        config = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
        vision = _vision_shape(config.vision_config)
        check_shapes(config.text_config, config.vision_config)
        text = _decoder_shape(config)
    return raw, text, vision


def check_shapes(text: Any, vision: Any) -> None:
    """Raise `EngineFailed` for numbers that don't fit together; all defaults are filled in."""
    head = text.hidden_size // text.num_attention_heads
    rules = {
        "hidden_size must be a multiple of num_attention_heads": (
            text.hidden_size % text.num_attention_heads == 0
        ),
        "num_attention_heads must be a multiple of num_key_value_heads": (
            text.num_attention_heads % text.num_key_value_heads == 0
        ),
        "mrope_section must add up to half a head": (
            2 * sum((text.rope_parameters or {}).get("mrope_section", SECTIONS)) == head
        ),
        "vision_config.hidden_size must be a multiple of num_heads": (
            vision.hidden_size % vision.num_heads == 0
        ),
        "vision_config.out_hidden_size must be hidden_size": (
            vision.out_hidden_size == text.hidden_size
        ),
        "hidden_act must be silu, twice": (text.hidden_act, vision.hidden_act) == ("silu", "silu"),
        "vision_config.window_size must hold a merged patch": (
            vision.window_size >= vision.patch_size * vision.spatial_merge_size
        ),
    }
    check_rules(rules, "config.json")


def _decoder_shape(config: Any) -> DecoderShape:
    text = config.text_config
    if "sliding_attention" in (text.layer_types or ()):
        raise InvalidRequest("this checkpoint uses sliding window attention, which is not offered")
    axes = axes_in_blocks((text.rope_parameters or {}).get("mrope_section", SECTIONS))
    return decoder_shape(config, text.hidden_size // text.num_attention_heads, axes)


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
        window=vision.window_size,
        full_blocks=frozenset(vision.fullatt_block_indexes),
        rope_theta=float(rope.get("rope_theta", ROPE_THETA)),
    )
