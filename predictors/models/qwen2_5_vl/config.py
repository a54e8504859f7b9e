"""Shapes of a Qwen2.5-VL checkpoint from its `config.json`, checked before anything is loaded.

Both the nested form and the hub's flat one (`rope_scaling`, `torch_dtype`) load. A value that
transformers would answer otherwise is refused with its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from predictors.chat.decoder.decoder import DecoderShape
from predictors.chat.decoder.rotary import axes_in_blocks
from predictors.chat.decoder.weights import decoder_shape
from predictors.chat.folder import rope_of
from predictors.compute.checkpoint.folder import reading
from predictors.models.qwen2_5_vl.folder import SECTIONS, decoder_sizes, read_folder
from predictors.models.qwen2_5_vl.vision.grid import VisionShape


def read_shapes(checkpoint: Path) -> tuple[dict[str, Any], DecoderShape, VisionShape]:
    """The raw `config.json` and the shapes it describes. Raises `InvalidRequest` for a model or an
    option that is not served, and `EngineFailed` for a folder that would be served wrong."""
    raw, text, vision = read_folder(checkpoint)
    with reading("config.json"):
        axes = axes_in_blocks(rope_of(text).get("mrope_section", SECTIONS))
        decoder = decoder_shape(checkpoint, decoder_sizes(raw, text), text, axes)
        full_blocks = frozenset(vision["fullatt_block_indexes"])
        tower = VisionShape.of(vision, window=vision["window_size"], full_blocks=full_blocks)
    return raw, decoder, tower
