"""Recognises what a path holds that is no checkpoint folder by itself: a hub's cache, an adapter,
one part of a pipeline, a file. Imports neither torch nor a model's library.

Messages name files and the last component of a path, never the whole path.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from predictors.compute.checkpoint.accounting import ADAPTED
from predictors.compute.checkpoint.folder import read_json, read_whole, shown
from predictors.compute.checkpoint.headers import (
    OTHER_FORMATS,
    is_weights_file,
    read_file_headers,
    taken_variant,
    variants_of,
    weight_files,
)
from predictors.errors import EngineFailed, InvalidRequest

log = logging.getLogger(__name__)

INDEX, CONFIG = "model_index.json", "config.json"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
CACHE = "models--"
"""Beginning of the name of a model's folder in the cache of Hugging Face's hub."""
CONVERT = "for FLUX, `predictors convert FILE TARGET --base FOLDER` makes a folder of it"
SINGLE_FILES = (".safetensors", ".sft")
PARTS = {
    "FluxTransformer2DModel": "transformer",
    "AutoencoderKL": "vae",
    "CLIPTextModel": "text_encoder",
    "T5EncoderModel": "text_encoder_2",
}
"""Parts of pipelines by the class that their config names."""
ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.*",
    "pytorch_lora_weights.*",
    "*lora*.safetensors",
)
MAX_FILES = 20  # whose headers are read to find adapters


def resolve_folder(path: Path, flag: str) -> Path:
    """The folder at `path`, a hub's cache resolved to its snapshot; `flag` is the option that names
    it. Raises `InvalidRequest` for a path that is no folder, and as `resolve_snapshot`."""
    if os.path.isdir(path):  # unlike Path's, these raise nothing
        return resolve_snapshot(path.absolute())  # `.` has no name for messages
    if not os.path.isfile(path):
        raise InvalidRequest(f"{flag}: there is no folder {str(path)!r}{_fetch_advice(path)}")
    why = CONVERT if path.suffix in SINGLE_FILES else OTHER_FORMATS.get(path.suffix, "")
    why = why or f"give the folder of the checkpoint, with its {INDEX} or {CONFIG}"
    raise InvalidRequest(f"{flag}: {path.name} is a file, not a folder; {why}")


def _fetch_advice(path: Path) -> str:
    """For a path that reads as a name on Hugging Face's hub; empty for another."""
    if not HUB_NAME.fullmatch(str(path)):
        return ""
    return (
        f"; nothing is fetched: `hf download {path} --local-dir FOLDER` does it for a model of "
        "Hugging Face's hub, then give FOLDER"
    )


def resolve_snapshot(folder: Path) -> Path:
    """The snapshot of a hub's cache (`models--org--name`) that `refs/main` names, or the only one;
    any other folder as it is. Raises `InvalidRequest` where none or several could be meant."""
    snapshots = folder / "snapshots"
    is_whole = any(os.path.isfile(folder / name) for name in (INDEX, CONFIG))
    if is_whole or not os.path.isdir(snapshots):
        return folder
    names = sorted(each.name for each in snapshots.glob("*") if each.is_dir())
    wanted = _main_revision(folder)
    if wanted in names:
        return snapshots / wanted
    here = f"{folder.name} is a hub's cache"
    if wanted:
        raise InvalidRequest(
            f"{here} whose refs/main names the snapshot {shown(wanted)}, which is not there; it "
            f"has {', '.join(names) or 'none'}: fetch it again, or give one of them"
        )
    if len(names) != 1:
        raise InvalidRequest(
            f"{here} without refs/main and with {len(names)} snapshots"
            + (f": give one of {', '.join(names)} in {snapshots.name}" if names else "; fetch it")
        )
    return snapshots / names[0]


def _main_revision(folder: Path) -> str:
    if not os.path.isfile(folder / "refs" / "main"):
        return ""
    return read_whole(folder / "refs" / "main", "refs/main")[:200].decode(errors="replace").strip()


def class_in_config(folder: Path) -> str:
    """The class that a checkpoint's config names, or an empty string."""
    for file, key in ((INDEX, "_class_name"), (CONFIG, "architectures")):
        try:
            value = read_json(folder, file, file).get(key)
        except EngineFailed:
            continue
        if isinstance(value, list):
            value = value[0] if value else None
        if isinstance(value, str):
            return value
    return ""


def model_type_of(folder: Path) -> str:
    """The `model_type` of a checkpoint in transformers' layout whose config names no class at all,
    or an empty string."""
    try:
        config = read_json(folder, CONFIG, CONFIG)
    except EngineFailed:
        return ""
    value = config.get("model_type")
    return value if isinstance(value, str) and config.get("architectures") is None else ""


def advice(folder: Path) -> str:
    """The likely kind of a folder without a known class, and what to give instead; or empty."""
    if find_adapter(folder, sorted(folder.glob("*.safetensors"))):
        return "it holds an adapter: give its model's folder, and this one with --lora NAME=PATH"
    if caches := sorted(each.name for each in folder.glob(f"{CACHE}*") if each.is_dir()):
        return f"it holds a hub's cache: give one of {shown(', '.join(caches))} in it"
    for name in (INDEX, CONFIG):
        if (folder / name).is_file():
            try:
                found = read_json(folder, name, name)
            except EngineFailed as error:
                return error.message
            return _part_advice(found) if name == CONFIG else ""
    if (folder / "transformer").is_dir():
        return f"{INDEX} is missing: fetch the checkpoint again"
    return _weights_advice(folder)


def _part_advice(config: Mapping[str, Any]) -> str:
    """For the folder of one part of a pipeline, by its config; empty for another."""
    named = config.get("architectures")
    classes = [config.get("_class_name"), *(named if isinstance(named, list) else ())]
    whole = f"it is one part of a pipeline: give the folder that holds {INDEX}"
    for name in classes:
        if isinstance(name, str) and name in PARTS:
            return f"{whole}, and this one with --component {PARTS[name]}=PATH"
    return whole if classes[0] else ""


def _weights_advice(folder: Path) -> str:
    for file in sorted(folder.glob("*.*")):
        if file.suffix in SINGLE_FILES:
            return f"it holds weights in one file ({shown(file.name)}): {CONVERT}"
        if why := OTHER_FORMATS.get(file.suffix):
            return f"it holds weights in one file ({shown(file.name)}): {why}"
    for below in sorted(each for each in folder.glob("*") if each.is_dir()):
        if (below / INDEX).is_file() or (below / CONFIG).is_file():
            return f"a checkpoint may be the folder {shown(below.name)} in it"
    return ""


def check_adapters(folder: Path, component: str) -> None:
    """Raise `EngineFailed` if the folder holds an adapter (LoRA, PEFT): it would not be applied."""
    others = [file for file in sorted(folder.glob("*.safetensors")) if not is_weights_file(file)]
    if name := find_adapter(folder, others):
        raise EngineFailed(
            f"{component} holds an adapter ({name}), which would not be applied; take it out of "
            "the folder and give it with --lora NAME=PATH, or merge it into the weights"
        )


def find_adapter(folder: Path, weights: Sequence[Path]) -> str:
    """The name of an adapter's file in a folder, by its name or, of `weights`, by its tensors."""
    for pattern in ADAPTER_FILES:
        for file in sorted(folder.glob(pattern)):
            return file.name
    for file in weights[:MAX_FILES]:
        try:
            names = read_file_headers(file)
        except EngineFailed:
            continue
        if names and all(ADAPTED.search(name) for name in names):
            return file.name
    return ""


def announce_weights(name: str, folder: Path, variant: str) -> None:
    """Log which files `weight_files` takes for `name` if these are not the plain ones or not all;
    raises as it does."""
    read = {file.name for file in weight_files(folder, variant)}
    taken = taken_variant(variants_of(folder), variant)
    if taken:
        log.info("%s: the weights are read from the files of the variant %s", name, taken)
    elif variant:
        log.info("%s: there is no variant %s, the plain weights files are read", name, variant)
    if others := sorted(
        file.name for file in folder.glob("*.safetensors") if file.name not in read
    ):
        log.info("%s: not read: %s", name, ", ".join(others))
