"""Folders of published sizes that take no disk: the configs of FLUX.1-dev and Qwen2.5-VL, and
safetensors files whose headers are whole and whose values are holes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

VALUE_BYTES = {"BF16": 2, "F8_E4M3": 1, "F32": 4}
FLUX_DEV: dict[str, dict[str, Any]] = {
    "transformer": {
        "_class_name": "FluxTransformer2DModel",
        "attention_head_dim": 128,
        "guidance_embeds": True,
        "in_channels": 64,
        "joint_attention_dim": 4096,
        "num_attention_heads": 24,
        "num_layers": 19,
        "num_single_layers": 38,
        "patch_size": 1,
        "pooled_projection_dim": 768,
    },
    "text_encoder": {
        "architectures": ["CLIPTextModel"],
        "eos_token_id": 2,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "vocab_size": 49408,
    },
    "text_encoder_2": {
        "architectures": ["T5EncoderModel"],
        "d_ff": 10240,
        "d_kv": 64,
        "d_model": 4096,
        "feed_forward_proj": "gated-gelu",
        "model_type": "t5",
        "num_heads": 64,
        "num_layers": 24,
        "relative_attention_num_buckets": 32,
        "vocab_size": 32128,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "latent_channels": 16,
        "layers_per_block": 2,
        "mid_block_add_attention": True,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 1024,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    },
}
"""The published configs, without values that decide nothing."""


def write_sparse(file: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """A safetensors file with this dtype and shape by name, and nothing but holes after its
    header."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + VALUE_BYTES[dtype] * prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as opened:
        opened.write(len(raw).to_bytes(8, "little") + raw)
        os.truncate(file, 8 + len(raw) + end)
