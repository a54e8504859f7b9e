"""Checks a Qwen2.5-VL folder before it is used: numbers of its config, and whether they fit
together. Imports neither torch nor transformers.

Absent values are filled in as transformers does; tests compare the defaults and the tensors with
the library's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from predictors.chat.folder import (
    check_preprocessor,
    filled_parts,
    parts_of,
    read_numbers,
    rope_of,
)
from predictors.chat.tensors import DecoderSizes, Shapes, adaptable_linears, decoder_tensors
from predictors.compute.checkpoint.folder import WIDTH, check_rules, reading
from predictors.errors import InvalidRequest

MODEL_TYPE = "qwen2_5_vl"
SECTIONS = (16, 24, 24)
LAYERS = (1, 1000)
POSITIONS_PER_SECOND = 4  # of films, where a config does not tell
TEXT: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), LAYERS),
    **dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), WIDTH),
    "max_position_embeddings": (1, 2**24),
}
VISION: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("depth", "num_heads", "patch_size", "temporal_patch_size"), LAYERS),
    **dict.fromkeys(("hidden_size", "intermediate_size", "out_hidden_size", "window_size"), WIDTH),
    **dict.fromkeys(("spatial_merge_size", "in_channels", "in_chans"), LAYERS),
    "tokens_per_second": (0, 1000),
}
TEXT_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "layer_types": None,
    "max_window_layers": 80,
    "sliding_window": 4096,
}
VISION_DEFAULTS: Mapping[str, Any] = {
    "depth": 32,
    "hidden_size": 3584,
    "hidden_act": "silu",
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": (7, 15, 23, 31),
    "out_hidden_size": 3584,
}


def read_folder(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The raw `config.json`, and its text and vision values with all defaults. Raises
    `InvalidRequest` or `EngineFailed` for a folder that is not served."""
    raw = check_numbers_of(checkpoint)
    with reading("config.json"):
        text, vision = filled_parts(raw, TEXT_DEFAULTS, VISION_DEFAULTS)
        check_shapes(text, vision)
        check_windows(text)
    return raw, text, vision


def check_numbers_of(checkpoint: Path) -> dict[str, Any]:
    """The raw `config.json`, whose numbers are within their limits and fit the preprocessor."""
    raw = read_numbers(checkpoint, MODEL_TYPE, TEXT, VISION, "config.json")
    check_preprocessor(checkpoint, parts_of(raw)["vision_config"])
    return raw


def check_shapes(text: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
    """Raise `EngineFailed` for numbers that don't fit together; all defaults are filled in."""
    head = text["hidden_size"] // text["num_attention_heads"]
    rules = {
        "hidden_size must be a multiple of num_attention_heads": (
            text["hidden_size"] % text["num_attention_heads"] == 0
        ),
        "num_attention_heads must be a multiple of num_key_value_heads": (
            text["num_attention_heads"] % text["num_key_value_heads"] == 0
        ),
        "head_dim must be hidden_size / num_attention_heads": text.get("head_dim") in (None, head),
        "mrope_section must add up to half a head": (
            2 * sum(rope_of(text).get("mrope_section", SECTIONS)) == head
        ),
        "vision_config.hidden_size must be a multiple of num_heads": (
            vision["hidden_size"] % vision["num_heads"] == 0
        ),
        "vision_config.out_hidden_size must be hidden_size": (
            vision["out_hidden_size"] == text["hidden_size"]
        ),
        "hidden_act must be silu, twice": (
            (text["hidden_act"], vision["hidden_act"]) == ("silu", "silu")
        ),
        "vision_config.window_size must hold a merged patch": (
            vision["window_size"] >= vision["patch_size"] * vision["spatial_merge_size"]
        ),
    }
    check_rules(rules, "config.json")


def check_windows(text: Mapping[str, Any]) -> None:
    """Raise `InvalidRequest` for sliding window attention."""
    types = text["layer_types"]
    if types is None and text["use_sliding_window"] and text["sliding_window"] is not None:
        types = ["sliding_attention"] * (text["num_hidden_layers"] > text["max_window_layers"])
    if "sliding_attention" in (types or ()):
        raise InvalidRequest("this checkpoint uses sliding window attention, which is not offered")


def decoder_sizes(raw: Mapping[str, Any], text: Mapping[str, Any]) -> DecoderSizes:
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    return DecoderSizes.of(raw, text, head_dim=head_dim)


def linears(raw: Mapping[str, Any]) -> Shapes:
    """Those that adapters may change, of a checkpoint with this checked config."""
    text, vision = filled_parts(raw, TEXT_DEFAULTS, VISION_DEFAULTS)
    tensors = decoder_tensors(decoder_sizes(raw, text)) | vision_tensors(vision)
    return adaptable_linears(tensors)


def vision_tensors(vision: Mapping[str, Any]) -> Shapes:
    """The vision tower's, by the hub's names."""
    hidden, mlp, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    wide = hidden * vision["spatial_merge_size"] ** 2
    frames = (vision["in_channels"], vision["temporal_patch_size"], patch, patch)
    found: Shapes = {
        "visual.patch_embed.proj.weight": (hidden, *frames),
        "visual.merger.ln_q.weight": (hidden,),
    }
    linears = {"merger.mlp.0": (wide, wide), "merger.mlp.2": (vision["out_hidden_size"], wide)}
    for i in range(vision["depth"]):
        block = f"blocks.{i}"
        found |= {f"visual.{block}.norm{j}.weight": (hidden,) for j in (1, 2)}
        linears |= {
            f"{block}.attn.qkv": (3 * hidden, hidden),
            f"{block}.attn.proj": (hidden, hidden),
            f"{block}.mlp.gate_proj": (mlp, hidden),
            f"{block}.mlp.up_proj": (mlp, hidden),
            f"{block}.mlp.down_proj": (hidden, mlp),
        }
    for name, shape in linears.items():
        found |= {f"visual.{name}.weight": shape, f"visual.{name}.bias": shape[:1]}
    return found
