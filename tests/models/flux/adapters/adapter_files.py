"""Adapters of random values for the embedded checkpoint, and the same in the spelling of several
trainers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from predictors.models.flux.adapters.places import PARTS, Places
from predictors.models.flux.adapters.reading import StoredAdapter, read_places, read_stored

CHECKPOINT = Path(__file__).parents[4] / "checkpoints" / "shapes-flux"
Tensors = dict[str, NDArray[Any]]
Halves = tuple[NDArray[np.float32], NDArray[np.float32]]

PLACES = read_places({part: CHECKPOINT / part for part in PARTS})
ATTENTION = "transformer.transformer_blocks.0.attn"
SINGLE = "transformer.single_transformer_blocks.1"
CLIP_Q = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
T5_Q = "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"


def halves(path: str, rank: int, seed: int = 0, places: Places = PLACES) -> Halves:
    """Random down and up of a linear by its canonical path."""
    part, _, name = path.partition(".")
    place = places.find(part, name)
    assert place is not None, path
    # the values of a path do not depend on what else is made
    rng = np.random.default_rng([seed, *path.encode()])
    down = rng.normal(size=(rank, place.in_features)).astype(np.float32)
    up = rng.normal(size=(place.out_features, rank)).astype(np.float32)
    return down, up


def diffusers(changes: Mapping[str, Halves], infix: str = "") -> Tensors:
    """With `infix` as PEFT's name of the adapter."""
    found: Tensors = {}
    for path, (down, up) in changes.items():
        found[f"{path}.lora_A{infix}.weight"] = down
        found[f"{path}.lora_B{infix}.weight"] = up
    return found


def kohya(name: str, down: NDArray[Any], up: NDArray[Any], alpha: float | None = None) -> Tensors:
    found = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    return found if alpha is None else found | {f"{name}.alpha": np.array(alpha, np.float32)}


def fused(*parts: Halves) -> Halves:
    """One layer whose output is that of all `parts`: their ranks one behind the other."""
    rank = sum(len(down) for down, _ in parts)
    up = np.zeros((sum(len(one) for _, one in parts), rank), np.float32)
    row = column = 0
    for down, one in parts:
        up[row : row + len(one), column : column + len(down)] = one
        row, column = row + len(one), column + len(down)
    return np.concatenate([down for down, _ in parts]), up


def saved(folder: Path, tensors: Tensors, name: str = "a.safetensors", **metadata: str) -> Path:
    path = folder / name
    save_file(tensors, path, metadata or None)
    return path


def peft_folder(folder: Path, tensors: Tensors, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    saved(folder, tensors, "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    return folder


def read(path: Path, places: Places = PLACES, **options: Any) -> StoredAdapter:
    return read_stored(path, places, **options)
