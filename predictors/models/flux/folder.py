"""Checks a FLUX.1 folder in diffusers layout before it is used: classes, configs, scheduler and
tokenizer files.

A checkpoint passes only if it would be drawn as diffusers draws it. Another class, an option that
is not implemented, or a number that does not fit to another part is refused by name. Weights are
checked in `weights`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from predictors.compute.checkpoint.accounting import FP8, witness
from predictors.compute.checkpoint.folder import (
    COUNT,
    WIDTH,
    check_numbers,
    check_texts,
    is_real,
    read_json,
    shown,
)
from predictors.compute.checkpoint.headers import read_headers
from predictors.compute.checkpoint.layout import check_adapters
from predictors.compute.checkpoint.quantised.config import named_method, read_quantisation
from predictors.errors import EngineFailed, InvalidRequest

FP8_FORMAT = "float-quantized"  # compressed-tensors' name for FP8 weights with scales beside them
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
CLASSES: Mapping[str, tuple[str, ...]] = {
    "scheduler": (SCHEDULER,),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("T5EncoderModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("T5TokenizerFast", "T5Tokenizer"),
    "transformer": ("FluxTransformer2DModel",),
    "vae": ("AutoencoderKL",),
}
"""The folders of a pipeline's parts, and the classes of each that are served."""
WEIGHTED_PARTS = ("transformer", "text_encoder", "text_encoder_2", "vae")
UNUSED_PARTS = {"feature_extractor"}  # does nothing without an `image_encoder`
MODEL_TYPES = {
    "text_encoder": ("clip_text_model", "clip"),
    "text_encoder_2": ("t5",),
}
NUMBERS: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "transformer": {
        "patch_size": (1, 1),
        "num_layers": COUNT,
        "num_single_layers": COUNT,
        "num_attention_heads": (1, 1000),
        **dict.fromkeys(("attention_head_dim", "in_channels", "out_channels"), WIDTH),
        **dict.fromkeys(("joint_attention_dim", "pooled_projection_dim"), WIDTH),
    },
    "text_encoder": {
        "num_hidden_layers": (1, 1000),
        "num_attention_heads": (1, 1000),
        **dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), WIDTH),
        "max_position_embeddings": WIDTH,
    },
    "text_encoder_2": {
        "num_layers": (1, 1000),
        "num_heads": (1, 1000),
        **dict.fromkeys(("d_model", "d_ff", "d_kv", "vocab_size"), WIDTH),
    },
    "vae": {
        "layers_per_block": (1, 1000),
        **dict.fromkeys(("latent_channels", "norm_num_groups", "sample_size"), WIDTH),
    },
    "scheduler": {
        "num_train_timesteps": WIDTH,
        "base_image_seq_len": WIDTH,
        "max_image_seq_len": WIDTH,
    },
}
UNSERVED_OPTIONS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_flow_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
)
"""Options of diffusers' scheduler class, and one that its pipeline reads there, that are not
implemented here."""
LIBRARIES = ("diffusers", "transformers")
NATIVE = re.compile(
    r"^(single_)?transformer_blocks\.\d+\.(attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)"
    r"|ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out)\.weight$"
)
"""The weights that `quantize` writes in fp8."""
NATIVE_GROUP: Mapping[str, Mapping[str, Any]] = {
    "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
    "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
}
QUANTISE = "for fp8 run `predictors quantize` on the unquantised folder"


def part_folders(folder: Path, replaced: Mapping[str, Path]) -> dict[str, Path]:
    """The folder of each part of the pipeline in `folder`: its own, or the one in `replaced`.

    Raises `InvalidRequest` for a part that a FLUX pipeline does not have, and for a folder that
    is a whole pipeline.
    """
    for part, path in replaced.items():
        if part not in CLASSES:
            raise InvalidRequest(
                f"--component {part}: a FLUX pipeline has no such part; it has {', '.join(CLASSES)}"
            )
        if (path / "model_index.json").is_file():
            raise InvalidRequest(
                f"--component {part}: {path.name} is a whole pipeline; give the folder {part} in it"
            )
    return {part: replaced.get(part, folder / part) for part in CLASSES}


def check_folder(
    folder: Path, replaced: Mapping[str, Path] = MappingProxyType({})
) -> dict[str, dict[str, Any]]:
    """The parts' raw configs by folder; raises `EngineFailed` for one that can't be served.

    `replaced` are folders of parts that are used instead of those in `folder`.
    """
    folders = part_folders(folder, replaced)
    index = read_json(folder, "model_index.json", "model_index.json")
    if method := named_method({k: v for k, v in index.items() if not isinstance(v, list)}):
        raise EngineFailed(
            f"model_index.json names a quantisation, {method}, for all parts: take it out if each "
            "part's own config says how its weights are stored, or take the unquantised folder"
        )
    check_adapters(folder, "the checkpoint")
    _check_classes(index)
    configs = {}
    for part in ("scheduler", "transformer", "vae", "text_encoder", "text_encoder_2"):
        file = "scheduler_config.json" if part == "scheduler" else "config.json"
        where = f"{part}/{file}"
        if not folders[part].is_dir():
            raise EngineFailed(f"the folder {part} is missing; fetch the checkpoint again")
        config = configs[part] = read_json(folders[part], file, where)
        check_adapters(folders[part], part)
        _check_class(config, part, where)
        for level in (config, config.get("text_config")):
            if isinstance(level, dict):
                check_numbers(level, where, NUMBERS[part])
                check_texts(level, where)
        if part != "scheduler":
            read_quantisation(config, folders[part], part, partial(witness, folders[part]))
    _check_scheduler(configs["scheduler"])
    _check_vae(configs["vae"])
    for part in ("tokenizer", "tokenizer_2"):
        check_tokenizer_files(folders[part], part)
    return configs


def is_quantised(folder: Path, variant: str = "") -> bool:
    """True if the transformer in `folder` is served in fp8 as it is stored: exactly the linears of
    its blocks in e4m3, with a scale per output feature, for activations scaled per token.

    That is what `quantize` writes. All else is dequantised when weights are loaded.
    """
    named = read_json(folder, "config.json", "transformer/config.json").get("quantization_config")
    if not isinstance(named, dict) or named.get("format") != FP8_FORMAT:
        return False
    groups = named.get("config_groups", {})
    if not isinstance(groups, dict) or not all(map(_is_native, groups.values())):
        return False
    try:
        stored = read_headers(folder, variant)
    except EngineFailed:  # said when weights are loaded
        return True
    narrow = {name for name, tensor in stored.items() if tensor.header.dtype in FP8}
    return narrow == {name for name in stored if NATIVE.search(name)}


def _is_native(group: Any) -> bool:
    own = group if isinstance(group, dict) else {}
    sides = [(own.get(side), wanted) for side, wanted in NATIVE_GROUP.items()]
    return all(
        isinstance(found, dict) and found.get(name, value) == value
        for found, wanted in sides
        for name, value in wanted.items()
    )


def _check_classes(index: Mapping[str, Any]) -> None:
    for part, named in index.items():
        if part in CLASSES and (not isinstance(named, list) or len(named) != 2):
            raise EngineFailed(
                f"model_index.json: {part} is {shown(named)}, not a library and a class of it"
            )
        if part.startswith("_") or part in UNUSED_PARTS or not isinstance(named, list):
            continue
        found = named[-1] if named else None
        if found is None and part not in CLASSES:
            continue
        served = CLASSES.get(part)
        if served is None:
            raise EngineFailed(
                f"model_index.json names a part that is not served: {shown(part)}, a {shown(found)}"
            )
        if found not in served:
            raise EngineFailed(
                f"{part} is a {shown(found)}, says model_index.json; served is {served[0]}"
            )
        if named[0] not in LIBRARIES:
            raise EngineFailed(
                f"{part} is a {shown(found)} of {shown(named[0])}, says model_index.json; served "
                f"is that of {' or '.join(LIBRARIES)}"
            )
    for part in CLASSES:
        if part not in index:
            raise EngineFailed(f"model_index.json names no {part}; a FLUX pipeline has one")


def _check_class(config: Mapping[str, Any], part: str, where: str) -> None:
    found = config.get("_class_name")
    if "_class_name" in config and found not in CLASSES[part]:
        raise EngineFailed(f"{where} is of a {shown(found)}; served is {CLASSES[part][0]}")
    kinds = MODEL_TYPES.get(part)
    kind = config.get("model_type")
    if kinds and kind is not None and kind not in kinds:
        raise EngineFailed(f"{where} is of a {shown(kind)}; served is {kinds[0]}")


def _check_scheduler(config: Mapping[str, Any]) -> None:
    where = "scheduler/scheduler_config.json"
    for name in UNSERVED_OPTIONS:
        if config.get(name):
            raise EngineFailed(f"{where} sets {name}, which is not served")
    for name in ("shift", "base_shift", "max_shift", "shift_terminal"):
        _check_real(config, name, where)
    if (config.get("shift_terminal") or 0.0) >= 1.0 or config.get("shift", 1.0) <= 0.0:
        raise EngineFailed(f"{where}: shift must be above 0 and shift_terminal below 1")
    kind = config.get("time_shift_type", "exponential")
    if kind not in ("exponential", "linear"):
        raise EngineFailed(f"{where}: time_shift_type is {shown(kind)}, not exponential or linear")
    least, most = (config.get(f"{n}_image_seq_len") or d for n, d in (("base", 256), ("max", 4096)))
    if least == most:
        raise EngineFailed(f"{where}: base_image_seq_len and max_image_seq_len are both {least}")


def _check_vae(config: Mapping[str, Any]) -> None:
    where = "vae/config.json"
    widths = config.get("block_out_channels")
    is_list = isinstance(widths, list) and 1 <= len(widths) <= 8
    if not is_list or not isinstance(widths, list):
        raise EngineFailed(f"{where}: block_out_channels is {shown(widths)}, not 1 to 8 widths")
    for width in widths:
        check_numbers({"block_out_channels": width}, where, {"block_out_channels": WIDTH})
        groups = config.get("norm_num_groups") or 32
        if width is None or width % groups:
            raise EngineFailed(
                f"{where}: {shown(width)} channels can't be cut into norm_num_groups {groups}"
            )
    for name in ("scaling_factor", "shift_factor"):
        _check_real(config, name, where)
    if config.get("scaling_factor") == 0:
        raise EngineFailed(f"{where}: scaling_factor is 0")


def _check_real(config: Mapping[str, Any], name: str, where: str) -> None:
    value = config.get(name, 0.0)
    if value is None and name in {"shift_terminal", "shift_factor"}:
        return
    if not is_real(value):
        raise EngineFailed(f"{where}: {name} is {shown(value)}, not a number")


def check_tokenizer_files(folder: Path, part: str) -> None:
    """Raise `EngineFailed` if a tokenizer would be read as an empty one, or not at all."""
    if not folder.is_dir():
        raise EngineFailed(f"the folder {part} is missing; fetch the checkpoint again")
    pieces = ("vocab.json", "merges.txt") if part == "tokenizer" else ("spiece.model",)
    if (folder / "tokenizer.json").is_file():
        read_json(folder, "tokenizer.json", f"{part}/tokenizer.json")
    elif not all((folder / name).is_file() for name in pieces):
        raise EngineFailed(
            f"{part} has no tokenizer.json and no {' and '.join(pieces)}; fetch the checkpoint "
            "again"
        )
    for name in ("tokenizer_config.json", "vocab.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            read_json(folder, name, f"{part}/{name}")
