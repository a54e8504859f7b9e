"""Checks of a checkpoint folder in transformers' layout that are the same for every chat model:
config, image processor, sampling defaults. Imports neither torch nor transformers.

A folder is refused unless answers are those of transformers; the message names file and value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from predictors.compute.checkpoint.accounting import witness
from predictors.compute.checkpoint.folder import (
    check_flags,
    check_numbers,
    check_rules,
    check_texts,
    is_real,
    read_if_there,
    read_json,
    reading,
    shown,
)
from predictors.compute.checkpoint.layout import check_adapters
from predictors.compute.checkpoint.quantised.config import read_quantisation
from predictors.errors import EngineFailed, InvalidRequest

PARTS = {"text_config": "language model", "vision_config": "vision tower"}
"""Parts of the config, and their names in messages. A config of the hub's older form has the values
of the first part at its top."""
OTHER_FILES = (
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
IMAGES = "Qwen2VLImageProcessor"
IMAGE_CLASSES = {
    f"{family}ImageProcessor{kind}"
    for family in ("Qwen2VL", "Qwen2_5_VL", "Qwen3VL")
    for kind in ("", "Fast", "Pil")
}
"""Names under which transformers has had the same preparation of pictures."""
PROCESSOR_CLASSES = {"Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor"}
SAME = (
    ("patch_size", "patch_size"),
    ("temporal_patch_size", "temporal_patch_size"),
    ("merge_size", "spatial_merge_size"),
)
"""Settings that preprocessor and vision tower must agree on."""
FLAGS = ("tie_word_embeddings", "use_sliding_window")
ROPE_TYPES = ("default", "mrope", "linear", "dynamic", "yarn")
PICTURE_OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "do_resize": (True,),
    **dict.fromkeys(("do_rescale", "do_normalize", "do_convert_rgb"), (True, False, None)),
    "resample": (0, 1, 2, 3),  # Pillow's numbers: nearest, Lanczos, bilinear, bicubic
    "input_data_format": (None, "channels_first"),
    "device": (None, "cpu"),
}
"""Values of the image processor that are served, of options that have few."""
SAMPLING = {
    "temperature": (0.0, 1e3),
    "top_p": (1e-6, 1.0),
    "top_k": (-1, 2**31),
    "repetition_penalty": (1e-3, 1e3),
    "min_p": (0.0, 1.0),
}
KINDS = {bool: "true or false", int: "a whole number"}
UNSERVED_DECODING: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("num_beams", "num_beam_groups"), (1,)),
    **dict.fromkeys(("typical_p", "encoder_repetition_penalty", "guidance_scale"), (1,)),
    **dict.fromkeys(("penalty_alpha", "epsilon_cutoff", "eta_cutoff", "top_h"), (0,)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), (0,)),
    **dict.fromkeys(("min_length", "min_new_tokens", "diversity_penalty"), (0,)),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "dola_layers"), ()),
    **dict.fromkeys(("exponential_decay_length_penalty", "watermarking_config"), ()),
    **dict.fromkeys(("bad_words_ids", "force_words_ids", "suppress_tokens"), ([],)),
    **dict.fromkeys(("begin_suppress_tokens", "sequence_bias", "stop_strings"), ([], {})),
}
"""Options of transformers' decoding that change answers and are not implemented here, and the
values with which they change none, beside null."""


def read_config(checkpoint: Path, model_type: str) -> dict[str, Any]:
    """The raw `config.json`. Raises `InvalidRequest` for another model, and `EngineFailed` for
    adapters, quantisations that are not served and files that are no JSON objects."""
    config = read_json(checkpoint, "config.json", "config.json")
    if config.get("model_type") != model_type:
        raise InvalidRequest(
            f"{checkpoint.name} is a {shown(config.get('model_type'))}, not a {model_type}"
        )
    check_adapters(checkpoint, "the checkpoint")
    _check_quantisation(config, checkpoint)
    for name, part in parts_of(config).items():
        if not isinstance(part, dict):
            raise EngineFailed(f"config.json: {name} is {shown(part)}, not an object")
        check_texts(part, "config.json")
        check_flags(part, "config.json", FLAGS)
    check_texts(config, "config.json")
    check_flags(config, "config.json", FLAGS)
    for name in OTHER_FILES:
        if (checkpoint / name).is_file():
            read_json(checkpoint, name, name)
    return config


def rope_rules(rope: Mapping[str, Any]) -> dict[str, bool]:
    """The rules for the rotary values, each with True if it holds."""
    kind, factor = rope.get("rope_type", rope.get("type", "default")), rope.get("factor", 0)
    is_plain = kind in ("default", "mrope")
    return {
        f"rope_type must be one of {', '.join(ROPE_TYPES)}": kind in ROPE_TYPES,
        "the factor of a rope_type must be 1 or more": is_plain
        or (is_real(factor) and factor >= 1),
    }


Limits = Mapping[str, tuple[int, int]]
"""Least and most of a config's numbers, by name."""


def read_numbers(
    checkpoint: Path, model_type: str, text: Limits, vision: Limits, text_name: str
) -> dict[str, Any]:
    """The raw `config.json`, whose numbers are within their limits and whose rotary options are
    possible. Messages call the language model's part `text_name`."""
    raw = read_config(checkpoint, model_type)
    parts = parts_of(raw)
    with reading("config.json"):
        check_rules(rope_rules(rope_of(parts["text_config"])), "config.json")
    check_numbers(parts["text_config"], text_name, text)
    check_numbers(parts["vision_config"], "config.json: vision_config", vision)
    return raw


def filled_parts(
    raw: Mapping[str, Any], text: Mapping[str, Any], vision: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The text and vision values of a raw config, over these defaults."""
    parts = parts_of(raw)
    return {**text, **parts["text_config"]}, {**vision, **parts["vision_config"]}


def parts_of(config: Mapping[str, Any]) -> dict[str, Any]:
    text, vision = config.get("text_config", config), config.get("vision_config", {})
    return {"text_config": text, "vision_config": vision}


def rope_of(text: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rotary values, under their name of the hub or of transformers 5."""
    return text.get("rope_scaling") or text.get("rope_parameters") or {}


def _check_quantisation(config: Mapping[str, Any], checkpoint: Path) -> None:
    """Raise `EngineFailed` for a method that is not served."""

    def shows() -> str:
        return witness(checkpoint)

    for key, part in PARTS.items():
        own = config.get(key)
        if isinstance(own, dict):
            read_quantisation(own, None, f"the {part}", shows)
    read_quantisation(config, checkpoint, "the language model", shows)


def read_preprocessor(checkpoint: Path) -> tuple[str, dict[str, Any] | None]:
    """The file with the settings of the image processor, and these; None if there is no such file.

    Raises `EngineFailed` for a processor of another class.
    """
    file, found = "preprocessor_config.json", None
    for name in ("processor_config.json", file):
        kind = read_if_there(checkpoint, name).get("processor_class")
        if kind is not None and kind not in PROCESSOR_CLASSES:
            served = ", ".join(sorted(PROCESSOR_CLASSES))
            raise EngineFailed(f"{name}: processor_class is {shown(kind)}; served are {served}")
    if (checkpoint / "processor_config.json").is_file():  # where transformers 5 writes it
        whole = read_json(checkpoint, "processor_config.json", "processor_config.json")
        found = whole.get("image_processor")
    if isinstance(found, dict):
        file = "processor_config.json"
    else:
        found = read_json(checkpoint, file, file) if (checkpoint / file).is_file() else None
    kind = (found or {}).get("image_processor_type")
    if kind is not None and kind not in IMAGE_CLASSES:
        raise EngineFailed(f"{file}: image_processor_type is {shown(kind)}; served is {IMAGES}")
    return file, found


def check_preprocessor(checkpoint: Path, vision: Mapping[str, Any]) -> None:
    """Raise `EngineFailed` for an image processor that is another one, or that cuts patches which
    the vision tower does not read."""
    file, settings = read_preprocessor(checkpoint)
    _check_processor(file, settings or {}, vision)


def _check_processor(file: str, found: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
    """Raise `EngineFailed` for settings of patches that are not served."""
    for name in ("image_mean", "image_std"):
        levels = found.get(name, [1.0] * 3)
        if not isinstance(levels, list) or len(levels) != 3 or not all(map(is_real, levels)):
            raise EngineFailed(f"{file}: {name} is {shown(levels)}, not three numbers")
    if 0 in found.get("image_std", ()):
        raise EngineFailed(f"{file}: image_std holds 0, by which pictures would be divided")
    _check_options(file, found)
    _check_pixels(file, found)
    for ours, theirs in SAME:
        if found.get(ours, vision.get(theirs)) != vision.get(theirs, found.get(ours)):
            raise EngineFailed(
                f"{file}: {ours} is {shown(found[ours])}, but {theirs} of the vision tower "
                f"{shown(vision[theirs])}"
            )


def read_film_settings(
    checkpoint: Path, processor: str, vision: Mapping[str, Any]
) -> tuple[str, dict[str, Any] | None]:
    """The file with the settings of the video processor, and these, as transformers finds them;
    None if there is no such file. Raises `EngineFailed` for settings that are not served."""
    found = read_if_there(checkpoint, "processor_config.json").get("video_processor")
    if isinstance(found, dict):
        file = "processor_config.json"
    else:
        names = ("video_preprocessor_config.json", "preprocessor_config.json")
        file = next((name for name in names if (checkpoint / name).is_file()), names[1])
        found = read_json(checkpoint, file, file) if (checkpoint / file).is_file() else None
    own = found or {}
    kind = own.get("video_processor_type", processor)
    if kind != processor:
        raise EngineFailed(f"{file}: video_processor_type is {shown(kind)}; served is {processor}")
    _check_processor(file, own, vision)
    numbers = ("fps", "num_frames", "min_frames", "max_frames")
    for name in numbers:
        value = own.get(name)
        if value is not None and (not is_real(value) or value <= 0):
            raise EngineFailed(f"{file}: {name} is {shown(value)}, not a number above 0")
    return file, found


def _check_options(file: str, found: Mapping[str, Any]) -> None:
    """Raise `EngineFailed` for an option of the processor that can't be carried out."""
    for name, served in PICTURE_OPTIONS.items():
        value = found.get(name, served[0])
        if not any(
            value is each or (each == value and type(each) is type(value)) for each in served
        ):
            listed = " or ".join(map(shown, served))
            raise EngineFailed(f"{file}: {name} is {shown(value)}; served is {listed}")
    factor = found.get("rescale_factor", 1 / 255)
    if found.get("do_rescale", True) and (not is_real(factor) or factor <= 0):
        raise EngineFailed(f"{file}: rescale_factor is {shown(factor)}, not a number above 0")


def _check_pixels(file: str, found: Mapping[str, Any]) -> None:
    """Raise `EngineFailed` for a processor that resizes to no possible area."""
    size = found.get("size")
    areas: dict[str, float] = {}
    for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        own = found.get(name)
        value = size.get(edge) if own is None and isinstance(size, dict) else own
        if value is None and size:
            problem = f"size is {shown(size)}, without shortest_edge and longest_edge"
            raise EngineFailed(f"{file}: {problem}, areas in pixels")
        if value is None:
            continue
        if not is_real(value) or value < 1:
            raise EngineFailed(f"{file}: {name} is {shown(value)}, which is no area of a picture")
        areas[name] = value
    least, most = areas.get("min_pixels", 0), areas.get("max_pixels", math.inf)
    if least > most:
        raise EngineFailed(f"{file}: min_pixels {least:.0f} is above max_pixels {most:.0f}")


def check_generation(checkpoint: Path) -> None:
    """Raise `EngineFailed` for a default of sampling that no caller could ask for, and for an
    option that would change answers and is not served."""
    file = "generation_config.json"
    found = read_if_there(checkpoint, file)
    for name, (least, most) in SAMPLING.items():
        value = found.get(name)
        if value is not None and (not is_real(value) or not least <= value <= most):
            raise EngineFailed(
                f"{file}: {name} is {shown(value)}; possible are {least:g} to {most:g}"
            )
    for name, kind in (("do_sample", bool), ("top_k", int)):
        value = found.get(name)
        if value is not None and not isinstance(value, kind):
            raise EngineFailed(f"{file}: {name} is {shown(value)}, not {KINDS[kind]}")
    for name, neutral in UNSERVED_DECODING.items():
        value = found.get(name)
        if value is not None and value not in neutral:
            raise EngineFailed(
                f"{file} sets {name} to {shown(value)}, which is not served; take it out to "
                "serve the model without"
            )
