"""Reads the headers of a component's safetensors files: names, dtypes, shapes and byte offsets of
all tensors. Imports neither torch nor a model's library, so that a folder is described in
milliseconds.

Errors name the file, never the path of the folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from predictors.compute.checkpoint.folder import check_file, read_whole, shown
from predictors.errors import EngineFailed

STEMS = ("model", "diffusion_pytorch_model")  # transformers' and diffusers' names


@dataclass(frozen=True, slots=True)
class Header:
    """A tensor as described in the file's header. `dtype` is its name in safetensors."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor is stored; `offset` and `num_bytes` in bytes, from the file's beginning."""

    file: Path
    offset: int
    num_bytes: int
    header: Header


def read_headers(folder: Path, stems: Sequence[str] = STEMS) -> dict[str, StoredTensor]:
    """All tensors of a component by name, file by file.

    Raises `EngineFailed` for a component without weights, a shard that is missing, and a file that
    is broken or cut short.
    """
    found: dict[str, StoredTensor] = {}
    for file in weight_files(folder, stems):
        found |= read_file_headers(file)
    return found


def read_file_headers(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one file; safetensors checks its header against the file's length."""
    try:
        check_file(file, f"{file.parent.name}/{file.name}")
        with safe_open(file, framework="np"):
            pass
        with file.open("rb") as opened:  # safetensors' reader has no offsets
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        found = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            described = Header(entry["dtype"], tuple(entry["shape"]))
            found[name] = StoredTensor(file, 8 + length + begin, end - begin, described)
        return found
    except (SafetensorError, ValueError, KeyError) as error:
        raise EngineFailed(
            f"{file.parent.name}/{file.name} is broken or cut short ({file.stat().st_size} bytes); "
            "fetch it again"
        ) from error
    except OSError as error:
        raise EngineFailed(f"{file.parent.name}/{file.name} can't be read") from error


def weight_files(folder: Path, stems: Sequence[str] = STEMS) -> list[Path]:
    """The safetensors files of a component: those that an index names, or the only one."""
    for stem in stems:
        index, single = (folder / f"{stem}.safetensors{tail}" for tail in (".index.json", ""))
        if index.is_file():
            return [_shard(folder, name) for name in _listed(index)]
        if single.is_file():
            return [single]
    found = sorted(file.name for file in folder.glob("*.safetensors"))
    if found:
        raise EngineFailed(
            f"the checkpoint's {folder.name} has {shown(', '.join(found))}, which is not "
            f"read: weights are {' or '.join(f'{stem}.safetensors' for stem in stems)}, "
            "or shards with an index; rename them"
        )
    raise EngineFailed(
        f"the checkpoint's {folder.name} has no safetensors weights; no other is read"
    )


def _shard(folder: Path, name: str) -> Path:
    # an index is untrusted: it must not lead out of its folder
    if Path(name).name != name or not (folder / name).is_file():
        raise EngineFailed(
            f"the checkpoint's {folder.name} lacks {Path(name).name}, which its index "
            "names; fetch it again"
        )
    return folder / name


def _listed(index: Path) -> list[str]:
    where = f"{index.parent.name}/{index.name}"
    try:
        files = json.loads(read_whole(index, where))["weight_map"].values()
        return sorted({str(file) for file in files})
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise EngineFailed(f"{where} is not an index of shards") from error
