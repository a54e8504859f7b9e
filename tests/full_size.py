"""Folders of published sizes that take no disk: the configs of FLUX.1-dev and Qwen2.5-VL, and
safetensors files whose headers are whole and whose values are holes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from predictors.chat.tensors import decoder_tensors
from predictors.models.flux.tensors import tensors_of, with_defaults
from predictors.models.qwen2_5_vl import folder as qwen25

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
FLUX, QWEN = CHECKPOINTS / "shapes-flux", CHECKPOINTS / "shapes-qwen-vl"

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


def _qwen(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, **more: Any) -> Any:
    """The hub's flat form."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 128000,
        "max_window_layers": layers,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "torch_dtype": "bfloat16",
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": hidden,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "window_size": 112,
        },
        **more,
    }


QWEN_3B = _qwen(2048, 11008, 36, 16, 2, vocab_size=151936, tie_word_embeddings=True)
QWEN_7B = _qwen(3584, 18944, 28, 28, 4, vocab_size=152064, tie_word_embeddings=False)


def flux_dev_folder(folder: Path) -> Path:
    """FLUX.1-dev: 34 GB in shards of at most 10 GB, without values."""
    shutil.copytree(FLUX, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for part, config in FLUX_DEV.items():
        (folder / part / "config.json").write_text(json.dumps(config))
        stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
        _write_shards(folder / part, stem, tensors_of(part, with_defaults(part, config), {}))
    return folder


def qwen_folder(folder: Path, config: Mapping[str, Any]) -> Path:
    """A Qwen2.5-VL of these sizes without values, in shards as the hub has them."""
    shutil.copytree(QWEN, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tokens = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    embedded = json.loads((QWEN / "config.json").read_text())
    raw = {**config, **{name: embedded[name] for name in tokens}}
    (folder / "config.json").write_text(json.dumps(raw))
    text = {**qwen25.TEXT_DEFAULTS, **raw}
    shapes = decoder_tensors(qwen25.decoder_sizes(raw, text))
    vision = {**qwen25.VISION_DEFAULTS, **raw["vision_config"]}
    _write_shards(folder, "model", shapes | qwen25.vision_tensors(vision))
    return folder


def _write_shards(folder: Path, stem: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    half = len(shapes) // 2
    items = list(shapes.items())
    shards = {
        f"{stem}-00001-of-00002.safetensors": items[:half],
        f"{stem}-00002-of-00002.safetensors": items[half:],
    }
    for name, pairs in shards.items():
        write_sparse(folder / name, {tensor: ("BF16", shape) for tensor, shape in pairs})
    index = {tensor: name for name, pairs in shards.items() for tensor, _ in pairs}
    file = folder / f"{stem}.safetensors.index.json"
    file.write_text(json.dumps({"metadata": {}, "weight_map": index}))
