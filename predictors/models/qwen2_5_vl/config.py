"""Shapes of a Qwen2.5-VL checkpoint from its `config.json`, checked before anything is loaded.

Configs go through transformers' own classes, so that both the nested form and the hub's flat one
(`rope_scaling`, `torch_dtype`) load. A value that transformers would answer otherwise is refused
with its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from predictors.chat.decoder.decoder import DecoderShape
from predictors.chat.decoder.rotary import axes_in_blocks
from predictors.chat.decoder.weights import decoder_shape
from predictors.compute.checkpoint.folder import reading
from predictors.models.qwen2_5_vl.folder import (
    SECTIONS,
    check_numbers_of,
    check_shapes,
    check_windows,
)
from predictors.models.qwen2_5_vl.vision.grid import ROPE_THETA, VisionShape


def read_shapes(checkpoint: Path) -> tuple[dict[str, Any], DecoderShape, VisionShape]:
    """The raw `config.json` and the shapes it describes. Raises `InvalidRequest` for a model or an
    option that is not served, and `EngineFailed` for a folder that would be served wrong."""
    raw = check_numbers_of(checkpoint)
    with reading("config.json"):
        config = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
        vision = _vision_shape(config.vision_config)
        check_shapes(config.text_config.to_dict(), config.vision_config.to_dict())
        check_windows(config.text_config.to_dict())
        text = _decoder_shape(config)
    return raw, text, vision


def _decoder_shape(config: Any) -> DecoderShape:
    text = config.text_config
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
