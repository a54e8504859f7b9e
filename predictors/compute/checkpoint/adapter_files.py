"""Finds the files of an adapter: one safetensors file, or the one in a folder, and PEFT's config
beside it. Without torch.

A link that leads out of its folder is refused, but for those of a hub's cache, whose snapshots are
links to blobs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from predictors.compute.checkpoint.adapter_scales import CONFIG_FILE
from predictors.compute.checkpoint.headers import OTHER_FORMATS
from predictors.compute.checkpoint.layout import resolve_snapshot
from predictors.compute.checkpoint.strict_file import named
from predictors.errors import EngineFailed, InvalidRequest

ENDING = ".safetensors"
PEFT_STEM = "adapter_model"
MAX_ENTRIES = 1000  # of a folder


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    name: str
    """Of the file with the weights, before links are followed."""
    weights: Path
    config: Path | None
    """PEFT's config; None where there is none."""


def find_files(path: Path, root: Path | None = None) -> AdapterFiles:
    """The files at `path`. Raises `InvalidRequest` for anything but one adapter, and for a file
    outside of `root`, once links are followed."""
    if os.path.isdir(path):
        return _in_folder(path, root)
    if not os.path.isfile(path):
        raise InvalidRequest(f"there is no file or folder {named(path.name)}")
    if path.suffix != ENDING:
        why = OTHER_FORMATS.get(path.suffix.lower(), f"its name must end with {ENDING}")
        raise InvalidRequest(f"{named(path.name)}: {why}")
    # a config beside another file may be of another adapter
    config = path.parent / CONFIG_FILE
    found = [path, *([config] if path.name.startswith(PEFT_STEM) else [])]
    taken = [each if root is None else _inside(each, root) for each in found if each.is_file()]
    return AdapterFiles(path.name, taken[0], taken[1] if len(taken) > 1 else None)


def _in_folder(folder: Path, root: Path | None) -> AdapterFiles:
    try:
        folder = resolve_snapshot(folder.absolute())
        names = sorted(os.listdir(folder))
    except EngineFailed as error:
        raise InvalidRequest(error.message) from error
    except OSError as error:
        raise InvalidRequest(f"{named(folder.name)} can't be read: {error.strerror}") from error
    if len(names) > MAX_ENTRIES:
        raise InvalidRequest(f"{named(folder.name)} has {len(names)} entries; give the file itself")
    found = [name for name in names if name.endswith(ENDING)]
    if len(found) != 1:
        raise InvalidRequest(_not_one(folder.name, found, names))
    allowed = _root_of(folder) if root is None else root
    config = _inside(folder / CONFIG_FILE, allowed) if CONFIG_FILE in names else None
    return AdapterFiles(found[0], _inside(folder / found[0], allowed), config)


def _not_one(folder: str, found: list[str], names: list[str]) -> str:
    if found:
        return f"{named(folder)} has {named(', '.join(found))}: give the one that is meant"
    for name in names:
        if (why := OTHER_FORMATS.get(Path(name).suffix.lower())) and name != "training_args.bin":
            return f"{named(folder)} has no {ENDING} file, but {named(name)}: {why}"
    return f"{named(folder)} has no {ENDING} file"


def _root_of(folder: Path) -> Path:
    """The folder that links may lead to: itself, or the cache whose snapshot it is."""
    is_snapshot = folder.parent.name == "snapshots" and (folder.parents[1] / "blobs").is_dir()
    return folder.parents[1] if is_snapshot else folder


def _inside(path: Path, root: Path) -> Path:
    """`path` with its links followed. Raises `InvalidRequest` if it is outside of `root`."""
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(root)):
        raise InvalidRequest(f"{named(path.name)} is a link that leads out of its folder")
    return real
