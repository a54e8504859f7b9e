"""Reads the headers of a component's safetensors files: names, dtypes, shapes and byte offsets of
all tensors. Imports neither torch nor a model's library, so that a folder is described in
milliseconds.

Errors name the file, never the path of the folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from predictors.compute.checkpoint.folder import check_file, read_whole, shown
from predictors.errors import EngineFailed

STEMS = ("model", "diffusion_pytorch_model")  # transformers' and diffusers' names
_STEM = "|".join(STEMS)
BEGINNINGS = (
    re.compile(rf"(?:{_STEM})(?:\.([^.]+))?\.safetensors"),
    re.compile(rf"(?:{_STEM})\.safetensors\.index(?:\.([^.]+))?\.json"),
    re.compile(rf"(?:{_STEM})\.safetensors\.([^.]+)\.index\.json"),  # diffusers before 0.29
)
"""Names of the file or index of one variant of the weights; the group is the variant."""
SHARDS = re.compile(rf"(?:{_STEM})(?:\.[^.]+)?-\d{{5}}-of-\d{{5}}(?:\.[^.]+)?\.safetensors")
SETTING = "PREDICTORS_COMPUTE_WEIGHTS_VARIANT"
OTHER_FORMATS = {
    ".gguf": "GGUF is not read: take the folder with safetensors weights",
    **dict.fromkeys(
        (".bin", ".pt", ".pth", ".ckpt"),
        "pickled weights are not read, since they can run code: save them as safetensors",
    ),
    **dict.fromkeys(
        (".msgpack", ".h5", ".onnx"), "weights of another framework are not read: take safetensors"
    ),
}
"""By the end of a file's name: why it is not read, and what to do."""


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


def headers_of(stored: Mapping[str, StoredTensor]) -> dict[str, Header]:
    return {name: tensor.header for name, tensor in stored.items()}


def read_headers(folder: Path, variant: str = "") -> dict[str, StoredTensor]:
    """All tensors of a component by name, file by file; `variant` as in `weight_files`.

    Raises `EngineFailed` for a component without weights, a shard that is missing, a tensor in two
    shards, and a file that is broken or cut short.
    """
    found: dict[str, StoredTensor] = {}
    for file in weight_files(folder, variant):
        stored = read_file_headers(file)
        if twice := sorted(found.keys() & stored.keys()):
            raise EngineFailed(
                f"the checkpoint's {folder.name} has the tensor {shown(twice[0])} in "
                f"{found[twice[0]].file.name} and in {file.name}, of which only one can be meant; "
                "fetch it again"
            )
        found |= stored
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


def weight_files(folder: Path, variant: str = "") -> list[Path]:
    """The safetensors files of a component: the single one, or those that an index names.

    `variant` is the wanted one (`fp16`). A component that lacks it has its plain files read, as in
    diffusers. Without plain files the only variant there is read, if none is wanted. Raises
    `EngineFailed` where two files could be meant, and where there is none.
    """
    found = variants_of(folder)
    taken = found.get(taken_variant(found, variant))
    if taken is None:
        if not found:
            raise EngineFailed(_no_weights(folder))
        names = " and ".join(sorted(name for one in found.values() for name in one))
        wanted = f"not the wanted variant {shown(variant)}" if variant else "no plain weights"
        raise EngineFailed(
            f"the checkpoint's {folder.name} has {names}, but {wanted}: set {SETTING} to "
            f"{' or '.join(sorted(found))}"
        )
    indices = [name for name in taken if name.endswith(".json")]
    files = {name: [name] if name not in indices else _listed(folder / name) for name in taken}
    if len(set(map(tuple, files.values()))) > 1:
        raise EngineFailed(
            f"the checkpoint's {folder.name} has {' and '.join(taken)}, of which only one can be "
            "meant; take the other out of the folder"
        )
    return [_shard(folder, name) for name in files[taken[0]]]


def taken_variant(found: Collection[str], variant: str) -> str:
    """The variant that is read of those in `found`; empty for the plain files."""
    if variant in found:
        return variant
    is_only_one = not variant and "" not in found and len(found) == 1
    return next(iter(found)) if is_only_one else ""


def variants_of(folder: Path) -> dict[str, list[str]]:
    """The names of single files and indices by variant of the weights; the plain one is empty."""
    found: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*.safetensors*")):
        match = next(filter(None, (each.fullmatch(file.name) for each in BEGINNINGS)), None)
        if match and not SHARDS.fullmatch(file.name) and file.is_file():
            found.setdefault(match[1] or "", []).append(file.name)
    return found


def is_weights_file(file: Path) -> bool:
    """True for a name under which weights or a shard of them are read."""
    return bool(SHARDS.fullmatch(file.name) or BEGINNINGS[0].fullmatch(file.name))


def _no_weights(folder: Path) -> str:
    """The message for a component without weights: what is there instead, and what to do."""
    here = f"the checkpoint's {folder.name} has"
    for file in sorted(folder.glob("*.safetensors*")):
        if file.is_symlink() and not file.exists():  # a hub's cache that was fetched in part
            return f"{here} {file.name} as a link to a file that is not there; fetch it again"
    found = sorted(file.name for file in folder.glob("*.safetensors"))
    if shards := [name for name in found if SHARDS.fullmatch(name)]:
        return f"{here} {shards[0]}, but no index of the shards; fetch the checkpoint again"
    if found:
        return (
            f"{here} {shown(', '.join(found))}, which is not read: weights are "
            f"{' or '.join(f'{stem}.safetensors' for stem in STEMS)}, or shards with an index; "
            "rename them"
        )
    for file in sorted(folder.glob("*")):
        if (why := OTHER_FORMATS.get(file.suffix)) and file.name != "training_args.bin":
            return f"{here} no safetensors weights, but {shown(file.name)}: {why}"
    return f"{here} no safetensors weights; no other is read; fetch the checkpoint again"


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
