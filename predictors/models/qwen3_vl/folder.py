"""Checks a Qwen3-VL folder before it is used: numbers of its config, and whether they fit together.
Imports neither torch nor transformers.

Absent values are filled in as transformers does; tests compare the defaults and the tensors with
the library's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
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
from predictors.compute.checkpoint.folder import WIDTH, check_rules, reading, shown
from predictors.errors import EngineFailed

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
TEXT_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 500000.0,
    "max_position_embeddings": 128000,
    "attention_bias": False,
}
VISION_DEFAULTS: Mapping[str, Any] = {
    "depth": 27,
    "hidden_size": 1152,
    "hidden_act": "gelu_pytorch_tanh",
    "intermediate_size": 4304,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 3584,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": (8, 16, 24),
}


def read_folder(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The raw `config.json`, and its text and vision values with all defaults. Raises
    `InvalidRequest` or `EngineFailed` for a folder that is not served."""
    raw = check_numbers_of(checkpoint)
    with reading("config.json"):
        text, vision = filled_parts(raw, TEXT_DEFAULTS, VISION_DEFAULTS)
        check_shapes(text, vision)
    return raw, text, vision


def check_numbers_of(checkpoint: Path) -> dict[str, Any]:
    """The raw `config.json`, whose numbers are within their limits and fit the preprocessor."""
    raw = read_numbers(checkpoint, MODEL_TYPE, TEXT, VISION, "config.json: text_config")
    _check_deepstack(parts_of(raw)["vision_config"].get("deepstack_visual_indexes"))
    check_preprocessor(checkpoint, parts_of(raw)["vision_config"])
    return raw


def check_shapes(text: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
    """Raise `EngineFailed` for numbers that don't fit together; all defaults are filled in."""
    rope = rope_of(text)
    levels = list(vision["deepstack_visual_indexes"])
    table = vision["num_position_embeddings"]
    rules = {
        "num_attention_heads must be a multiple of num_key_value_heads": (
            text["num_attention_heads"] % text["num_key_value_heads"] == 0
        ),
        "mrope_section must add up to half a head": (
            2 * sum(rope.get("mrope_section", SECTIONS)) == text["head_dim"]
        ),
        "mrope_interleaved must be true": rope.get("mrope_interleaved", True) is True,
        "attention_bias must be false": not text["attention_bias"],
        "vision_config.hidden_size must be a multiple of four times num_heads": (
            vision["hidden_size"] % (4 * vision["num_heads"]) == 0
        ),
        "vision_config.out_hidden_size must be hidden_size": (
            vision["out_hidden_size"] == text["hidden_size"]
        ),
        "vision_config.num_position_embeddings must be a square": isqrt(table) ** 2 == table,
        "vision_config.deepstack_visual_indexes must ascend and be blocks of the vision tower": (
            levels == sorted({i for i in levels if i < vision["depth"]})
        ),
        "deepstack_visual_indexes must be at most num_hidden_layers": (
            len(levels) <= text["num_hidden_layers"]
        ),
        f"hidden_act must be {' and '.join(ACTIVATIONS)}": (
            (text["hidden_act"], vision["hidden_act"]) == ACTIVATIONS
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


def decoder_sizes(raw: Mapping[str, Any], text: Mapping[str, Any]) -> DecoderSizes:
    return DecoderSizes.of(raw, text, head_dim=text["head_dim"], qkv_bias=False, qk_norm=True)


def linears(raw: Mapping[str, Any]) -> Shapes:
    """Those that adapters may change, of a checkpoint with this checked config."""
    text, vision = filled_parts(raw, TEXT_DEFAULTS, VISION_DEFAULTS)
    tensors = decoder_tensors(decoder_sizes(raw, text)) | vision_tensors(vision)
    return adaptable_linears(tensors)


def vision_tensors(vision: Mapping[str, Any]) -> Shapes:
    """The vision tower's, by the hub's names."""
    hidden, mlp, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    wide, out = hidden * vision["spatial_merge_size"] ** 2, vision["out_hidden_size"]
    frames = (vision["in_channels"], vision["temporal_patch_size"], patch, patch)
    found: Shapes = {"visual.pos_embed.weight": (vision["num_position_embeddings"], hidden)}
    weights: Shapes = {"patch_embed.proj": (hidden, *frames)}
    for i in range(vision["depth"]):
        weights |= {
            f"blocks.{i}.norm1": (hidden,),
            f"blocks.{i}.attn.qkv": (3 * hidden, hidden),
            f"blocks.{i}.attn.proj": (hidden, hidden),
            f"blocks.{i}.norm2": (hidden,),
            f"blocks.{i}.mlp.linear_fc1": (mlp, hidden),
            f"blocks.{i}.mlp.linear_fc2": (hidden, mlp),
        }
    levels = range(len(vision["deepstack_visual_indexes"]))
    mergers = {"merger": hidden} | {f"deepstack_merger_list.{i}": wide for i in levels}
    for merger, normed in mergers.items():
        weights |= {
            f"{merger}.norm": (normed,),
            f"{merger}.linear_fc1": (wide, wide),
            f"{merger}.linear_fc2": (out, wide),
        }
    for name, shape in weights.items():
        found |= {f"visual.{name}.weight": shape, f"visual.{name}.bias": shape[:1]}
    return found
