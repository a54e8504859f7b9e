"""Makes a folder in diffusers layout of a FLUX.1 checkpoint in one file.

Tensors are read, scaled, cut and written one after the other. What the file does not hold (configs,
tokenizers, mostly encoders and autoencoder) is copied from a folder that is complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from predictors.compute.checkpoint.folder import read_json, shown
from predictors.compute.checkpoint.headers import Header, weight_files
from predictors.compute.checkpoint.integrity import MANIFEST
from predictors.compute.checkpoint.quantised.config import KEYS
from predictors.compute.checkpoint.quantised.dequantise import dequantised
from predictors.compute.checkpoint.summary import CardFacts
from predictors.compute.checkpoint.writing import check_new, new_folder, write_tensors
from predictors.errors import EngineFailed, InvalidRequest
from predictors.models.flux.folder import WEIGHTED_PARTS, check_folder
from predictors.models.flux.single_file import SingleFile, StoredPart, read_single_file
from predictors.models.flux.single_file_names import Cut
from predictors.models.flux.stored import check_headers
from predictors.models.flux.summary import summarise
from predictors.models.flux.tensors import with_defaults
from predictors.settings import ComputeSettings, Settings

AXES = {128: (16, 56, 56)}
"""FLUX.1's rotary features per position axis, by those of a head; no tensor shows them."""
WEIGHTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}
NOT_COPIED = shutil.ignore_patterns(
    "*.safetensors", "*.safetensors.*", "*.bin", "*.bin.index.json", "*.msgpack", "*.h5"
)


@dataclass(frozen=True)
class ConvertedPart:
    """Where the weights of a part of the new folder are from."""

    part: str
    source: str
    """The name of the file, or of the base from which they were copied."""
    is_copied: bool
    bytes: int | None = None
    """Of the weights that were written; None for a copy."""
    quantisation: str = ""
    """The method by which the file stores them, empty for none. They are written dequantised."""


def part_lines(parts: Sequence[ConvertedPart]) -> list[str]:
    """A line for each part that says where its weights are from."""
    lines = []
    for each in parts:
        method = f", {each.quantisation}" if each.quantisation else ""
        written = f"from {each.source}, {(each.bytes or 0) / 1e6:,.1f} MB{method}"
        copied = f"copied from {each.source}"
        lines.append(f"{each.part}: {copied if each.is_copied else written}")
    return lines


def convert_checkpoint(
    source: Path, target: Path, base: Path, variant: str = ""
) -> list[ConvertedPart]:
    """Write the new folder `target` from the file `source` and the folder `base`; returns where
    the weights of each part are from. `variant` is the wanted one of the base's.

    Raises `InvalidRequest` if `target` exists or `source` is no FLUX.1 checkpoint that is served,
    and `EngineFailed` if the parts don't fit together. `target` is complete or not there.
    """
    check_new(target)
    file = read_single_file(source)
    config = _transformer_config(file, base)
    _check_parts(file, config, base, variant)
    with new_folder(target) as growing:
        _copy(base, growing, file)
        text = json.dumps(config, indent=2)
        (growing / "transformer" / "config.json").write_text(text, encoding="utf-8")
        written = [_write_part(file, part, growing / part) for part in file.parts]
        settings = Settings(compute=ComputeSettings(weights_variant=variant))
        summarise(growing, settings, CardFacts())  # raises as the start would
    copied = [part for part in WEIGHTED_PARTS if part not in file.parts]
    return [*written, *(ConvertedPart(part, base.name, is_copied=True) for part in copied)]


def _transformer_config(file: SingleFile, base: Path) -> dict[str, Any]:
    """The config of the file's transformer; raises if `base` is of another kind."""
    check_folder(base)
    theirs = read_json(base / "transformer", "config.json", "transformer/config.json")
    sizes = file.sizes
    if bool(theirs.get("guidance_embeds", False)) != sizes.has_guidance:
        kinds = ("FLUX.1-schnell, without", "FLUX.1-dev, with")
        raise InvalidRequest(
            f"{file.path.name} is like {kinds[sizes.has_guidance]} a guidance embedding, and the "
            f"base like {kinds[not sizes.has_guidance]} one: their noise schedules differ; give a "
            "base of the same kind"
        )
    head_dim = theirs.get("attention_head_dim", 128)
    axes = theirs.get("axes_dims_rope", AXES[128])
    if head_dim != sizes.head_dim:
        if sizes.head_dim not in AXES:
            raise InvalidRequest(
                f"{file.path.name} has heads of {sizes.head_dim} features, the base of "
                f"{shown(head_dim)}: give a base with the same, since the rotary axes are read "
                "from it"
            )
        axes = AXES[sizes.head_dim]
    return sizes.config(tuple(axes))


def _check_parts(file: SingleFile, config: dict[str, Any], base: Path, variant: str) -> None:
    """Raise `EngineFailed` for a part that fits to no config or has no weights, before gigabytes
    are written."""
    for part in WEIGHTED_PARTS:
        if part not in file.parts:
            weight_files(base / part, variant)
            continue
        if part != "transformer":
            config = read_json(base / part, "config.json", f"{part}/config.json")
        made = _headers(file.parts[part]).items()
        check_headers(part, with_defaults(part, config), dict(made))


def _copy(base: Path, target: Path, file: SingleFile) -> None:
    """All of `base` except the weights that `file` holds."""
    target.mkdir(parents=True)
    for entry in sorted(base.iterdir()):
        if entry.name.startswith(".") or entry.name == MANIFEST:  # digests of the base
            continue
        if not entry.is_dir():
            if entry.suffix != ".safetensors":  # the same model in one file, beside its parts
                shutil.copy2(entry, target / entry.name)
            continue
        ignore = NOT_COPIED if entry.name in file.parts else None
        shutil.copytree(entry, target / entry.name, ignore=ignore)
        config = target / entry.name / "config.json"
        if entry.name in file.parts and config.is_file():
            own = read_json(config.parent, config.name, f"{entry.name}/config.json")
            kept = {key: value for key, value in own.items() if key not in KEYS}
            config.write_text(json.dumps(kept, indent=2), encoding="utf-8")


def _write_part(file: SingleFile, part: str, folder: Path) -> ConvertedPart:
    stored = file.parts[part]
    num_bytes = write_tensors(folder / WEIGHTS[part], _headers(stored), _tensors(file, stored))
    method = next((layer.method for layer in stored.layers.values()), "")
    return ConvertedPart(
        part, file.path.name, is_copied=False, bytes=num_bytes, quantisation=method
    )


def _by_source(part: StoredPart) -> list[tuple[str, Cut]]:
    """Names and cuts in the order of their sources, so that each of these is read once."""
    return sorted(part.cuts.items(), key=lambda pair: pair[1].source)


def _headers(part: StoredPart) -> dict[str, Header]:
    """The tensors that are written."""
    headers = {}
    for name, cut in _by_source(part):
        header = part.headers[cut.source]
        dtype = "BF16" if part.is_narrow(cut.source) else header.dtype
        headers[name] = Header(dtype, cut.shape(header.shape))
    return headers


def _tensors(file: SingleFile, part: StoredPart) -> Iterator[tuple[str, Tensor]]:
    """The part's tensors by diffusers' names, in the order of their sources."""
    read, whole = "", torch.empty(0)
    with safe_open(file.path, framework="pt") as opened:

        def stored(name: str) -> Tensor:
            tensor: Tensor = opened.get_tensor(part.full_names[name])
            return tensor

        for name, cut in _by_source(part):
            if cut.source != read:
                read, layer = cut.source, part.layers.get(cut.source)
                whole = stored(read) if layer is None else dequantised(layer, stored)
                if layer is None and part.is_narrow(read):
                    _check_range(f"{file.path.name}: {read}", whole)
                if part.is_narrow(read):
                    whole = whole.to(torch.bfloat16)
            rows = [whole[start:stop] for start, stop in cut.rows] or [whole]
            tensor = rows[0] if len(rows) == 1 else torch.cat(rows)
            yield name, tensor.reshape(cut.shape(tuple(whole.shape)))


def _check_range(name: str, narrow: Tensor) -> None:
    """Raise `EngineFailed` for a float8 weight that lost its scale: its values fill the whole range
    of the dtype."""
    most = torch.finfo(narrow.dtype).max
    if narrow.ndim > 1 and float(narrow.to(torch.float32).abs().amax()) >= most:
        raise EngineFailed(
            f"{name} is float8 up to the largest number there is, so it needs a scale, but the "
            "file holds none; fetch another file"
        )
