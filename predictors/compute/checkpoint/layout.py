"""Recognises what a path holds that is no checkpoint folder by itself: a hub's cache, an adapter,
one part of a pipeline, a file. Imports neither torch nor a model's library.

Messages name files and the last component of a path, never the whole path.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from predictors.compute.checkpoint.accounting import ADAPTED
from predictors.compute.checkpoint.folder import ADAPTER_FILES, read_json, read_whole, shown
from predictors.compute.checkpoint.headers import OTHER_FORMATS, read_file_headers
from predictors.errors import EngineFailed, InvalidRequest

INDEX, CONFIG = "model_index.json", "config.json"
CACHE = "models--"
"""Beginning of the name of a model's folder in the cache of Hugging Face's hub."""
CONVERT = "for FLUX, `python -m predictors convert FILE TARGET --base FOLDER` makes a folder of it"
PARTS = {
    "FluxTransformer2DModel": "transformer",
    "AutoencoderKL": "vae",
    "CLIPTextModel": "text_encoder",
    "T5EncoderModel": "text_encoder_2",
}
"""Parts of pipelines by the class that their config names."""
MAX_FILES = 20  # whose headers are read for an advice


def resolve_folder(path: Path, flag: str) -> Path:
    """The folder at `path`, a hub's cache resolved to its snapshot; `flag` is the option that names
    it. Raises `InvalidRequest` for a path that is no folder, and as `resolve_snapshot`."""
    if os.path.isdir(path):  # unlike Path's, these raise nothing
        return resolve_snapshot(path)
    if not os.path.isfile(path):
        raise InvalidRequest(f"{flag}: there is no folder {str(path)!r}")
    why = OTHER_FORMATS.get(path.suffix, CONVERT)
    raise InvalidRequest(f"{flag}: {path.name} is a file, not a folder; {why}")


def resolve_snapshot(folder: Path) -> Path:
    """The snapshot of a hub's cache (`models--org--name`) that `refs/main` names, or the only one;
    any other folder as it is. Raises `InvalidRequest` where none or several could be meant."""
    snapshots = folder / "snapshots"
    if (folder / INDEX).is_file() or (folder / CONFIG).is_file() or not snapshots.is_dir():
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
    if not (folder / "refs" / "main").is_file():
        return ""
    return read_whole(folder / "refs" / "main", "refs/main")[:200].decode(errors="replace").strip()


def advice(folder: Path) -> str:
    """The likely kind of a folder without a known class, and what to give instead; or empty."""
    if any(any(folder.glob(pattern)) for pattern in ADAPTER_FILES) or _is_adapter(folder):
        return "it holds an adapter: merge it into its model and give that folder"
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
        if file.suffix == ".safetensors":
            return f"it holds weights in one file ({shown(file.name)}): {CONVERT}"
        if why := OTHER_FORMATS.get(file.suffix):
            return f"it holds weights in one file ({shown(file.name)}): {why}"
    for below in sorted(each for each in folder.glob("*") if each.is_dir()):
        if (below / INDEX).is_file() or (below / CONFIG).is_file():
            return f"a checkpoint may be the folder {shown(below.name)} in it"
    return ""


def _is_adapter(folder: Path) -> bool:
    """True if the folder's safetensors files hold tensors of adapters only."""
    names: list[str] = []
    for file in sorted(folder.glob("*.safetensors"))[:MAX_FILES]:
        try:
            names += read_file_headers(file)
        except EngineFailed:
            return False
    return bool(names) and all(ADAPTED.search(name) for name in names)
