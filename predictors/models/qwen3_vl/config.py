"""Shapes of a Qwen3-VL checkpoint from its `config.json`, checked before anything is loaded.

Both the hub's form (`rope_scaling`, `torch_dtype`) and that of transformers 5 (`rope_parameters`)
load. A value that transformers would answer otherwise is refused with its name.
"""

from __future__ import annotations

from math import isqrt
from pathlib import Path
from typing import Any

from predictors.chat.decoder.decoder import DecoderShape
from predictors.chat.decoder.rotary import axes_interleaved
from predictors.chat.decoder.weights import decoder_shape
from predictors.chat.folder import rope_of
from predictors.compute.checkpoint.folder import reading
from predictors.models.qwen3_vl.folder import SECTIONS, decoder_sizes, read_folder
from predictors.models.qwen3_vl.vision.grid import VisionShape


def read_shapes(checkpoint: Path) -> tuple[dict[str, Any], DecoderShape, VisionShape]:
    """The raw `config.json` and the shapes it describes. Raises `InvalidRequest` for another model,
    and `EngineFailed` for a folder that would be served wrong."""
    raw, text, vision = read_folder(checkpoint)
    with reading("config.json"):
        tower = VisionShape.of(
            vision,
            table_side=isqrt(vision["num_position_embeddings"]),
            deepstack=tuple(vision["deepstack_visual_indexes"]),
        )
        decoder = decoder_shape(
            checkpoint,
            decoder_sizes(raw, text),
            text,
            axes_interleaved(rope_of(text).get("mrope_section", SECTIONS)),
            qkv_bias=False,
            qk_norm=True,
            deepstack=len(tower.deepstack),
        )
    return raw, decoder, tower
