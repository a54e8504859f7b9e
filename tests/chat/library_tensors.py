"""The tensors of transformers' own module of a chat config, beside those that are computed from the
config alone.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from predictors.chat.tensors import by_hub_names, decoder_tensors

Shapes = dict[str, tuple[int, ...]]


def computed_tensors(module: ModuleType, raw: Mapping[str, Any]) -> Shapes:
    """From the config, by the functions of a model's `folder`."""
    text = {**module.TEXT_DEFAULTS, **raw.get("text_config", raw)}
    vision = {**module.VISION_DEFAULTS, **raw["vision_config"]}
    found = decoder_tensors(module.decoder_sizes(raw, text)) | module.vision_tensors(vision)
    return dict(found)


def library_tensors(raw: Mapping[str, Any], folder: Path) -> Shapes:
    """By the hub's names, without a head that is tied. `folder` takes the config."""
    (folder / "config.json").write_text(json.dumps(raw))
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = AutoModelForImageTextToText.from_config(config)
    stored = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if config.tie_word_embeddings:
        del stored["lm_head.weight"]
    return by_hub_names(stored)


def check_defaults(module: ModuleType, config: Any) -> None:
    """The defaults of a model's `folder` are those of the library's `config`."""
    derived = {"layer_types": None, "sliding_window": 4096}  # from other values
    for ours, theirs in (
        (module.TEXT_DEFAULTS, config.text_config),
        (module.VISION_DEFAULTS, config.vision_config),
    ):
        for name, value in ours.items():
            found = getattr(theirs, "default_theta" if name == "rope_theta" else name)
            found = tuple(found) if isinstance(value, tuple) else found
            assert derived.get(name, found) == value, name
