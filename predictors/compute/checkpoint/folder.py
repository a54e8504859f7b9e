"""Reads the configs of a checkpoint folder as JSON, and finds adapters in it.

A folder is untrusted: files may be missing, truncated or of another type. Every problem is an
`EngineFailed` that names the file inside the folder, never the path of the folder.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from predictors.errors import EngineFailed, ServingError

COUNT = (0, 1000)
"""Limits of a number of layers and the like. With a larger one, loading takes minutes to fail."""
WIDTH = (1, 2**20)
OPTIONAL = {"out_channels"}
"""Numbers that may be null in a config."""
UNQUANTISED = "take the unquantised folder"
SHOWN = 60  # characters of a value that a message repeats
POINTER, MOST_POINTER_BYTES = b"version https://git-lfs.github.com/spec/", 1024
MOST_JSON_BYTES = 256 * 2**20  # tokenizers of large vocabularies have 30 MB


def read_json(folder: Path, name: str, where: str) -> dict[str, Any]:
    """The JSON object in `folder / name`. Messages call the file `where`."""
    raw = read_whole(folder / name, where)
    try:
        found = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise EngineFailed(
            f"{where} is no JSON, or cut short ({len(raw)} bytes); fetch it again"
        ) from error
    if not isinstance(found, dict):
        raise EngineFailed(f"{where} holds a {type(found).__name__}, not an object")
    return found


def read_if_there(folder: Path, name: str, where: str = "") -> dict[str, Any]:
    """As `read_json`; empty if there is no such file. Without `where` messages call it `name`."""
    return read_json(folder, name, where or name) if (folder / name).is_file() else {}


def read_whole(path: Path, where: str) -> bytes:
    """The bytes of a file. Raises `EngineFailed` for one that is missing, too long, or no file: a
    pipe or a device would be read for ever."""
    try:
        check_file(path, where)
        with path.open("rb") as file:
            return file.read(MOST_JSON_BYTES)
    except FileNotFoundError as error:
        raise EngineFailed(f"{where} is missing; fetch the checkpoint again") from error
    except OSError as error:
        raise EngineFailed(f"{where} can't be read: {error.strerror}") from error


def check_file(path: Path, where: str) -> None:
    """Raise `EngineFailed` for a pipe, a socket, a device, a pointer of Git LFS, and a JSON file of
    no sane length.

    Raises `OSError` if there is nothing, or no permission to look.
    """
    found = os.stat(path)
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise EngineFailed(f"{where} is no regular file; fetch the checkpoint again")
    if found.st_size <= MOST_POINTER_BYTES and _is_pointer(path):
        raise EngineFailed(
            f"{where} is a pointer of Git LFS, not the file itself: run `git lfs pull` in the "
            "folder, or fetch the checkpoint again"
        )
    if path.suffix == ".json" and found.st_size > MOST_JSON_BYTES:
        raise EngineFailed(f"{where} has {found.st_size} bytes; no checkpoint needs that many")


def _is_pointer(path: Path) -> bool:
    """True for what a clone without Git LFS has in the place of a large file."""
    try:
        with path.open("rb") as file:
            return file.read(len(POINTER)) == POINTER
    except OSError:  # a folder, or one that whoever reads it will name
        return False


def check_entries(folder: Path) -> None:
    """Raise `EngineFailed` for a pipe, a socket or a device in a folder or one level below, for
    which a library may wait for ever, and for a pointer of Git LFS."""
    for place in (folder, *(each for each in _entries(folder) if os.path.isdir(each))):
        for entry in _entries(place):
            if os.path.exists(entry):
                check_file(entry, entry.name if place is folder else f"{place.name}/{entry.name}")


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise EngineFailed(f"the folder {folder.name} can't be read: {error.strerror}") from error


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn every exception of a library that reads files into an `EngineFailed` that names them.

    Libraries raise any type: `tokenizers` a bare `Exception`, diffusers an `IndexError`.
    """
    try:
        yield
    except ServingError:
        raise
    except Exception as error:
        raise EngineFailed(
            f"{what} can't be read: not what this kind of checkpoint has there; compare with the "
            "original"
        ) from error


def check_numbers(
    config: Mapping[str, Any], where: str, limits: Mapping[str, tuple[int, int]]
) -> None:
    """Raise `EngineFailed` for a value that is not a whole number within its limits, if present."""
    for name, (least, most) in limits.items():
        if name not in config or (name in OPTIONAL and config[name] is None):
            continue
        value = config[name]
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise EngineFailed(f"{where}: {name} is {shown(value)}; possible are {least} to {most}")


SPECIAL_TOKENS = tuple(f"{n}_token" for n in ("bos", "eos", "unk", "pad", "sep", "cls", "mask"))
TEXTS = ("transformers_version", "dtype", "torch_dtype", "hidden_act")
NO_TEXTS = re.compile(
    r"^(num|use|is|initializer|projection)_|^rope_(scaling|parameters)$"
    r"|(^|_)(eps|epsilon|dropout|rate|range|dim|size|theta|layers|heads|distance|buckets|indexes"
    r"|factor)$"
)
"""Names of configs' values that are numbers, flags or lists in all of transformers' classes."""


def check_texts(config: Mapping[str, Any], where: str, names: Sequence[str] = TEXTS) -> None:
    """Raise `EngineFailed` for a value that is there and is no text. A token may be an object with
    its text as `content`. A number or flag that is a text raises too."""
    for name, value in config.items():
        if isinstance(value, str) and NO_TEXTS.search(name):
            raise EngineFailed(f"{where}: {name} is {shown(value)}, a text")
    for name in names:
        value = config.get(name)
        if isinstance(value, Mapping) and name in SPECIAL_TOKENS:
            value = value.get("content", value)
        if value is not None and not isinstance(value, str):
            raise EngineFailed(f"{where}: {name} is {shown(value)}, not a text")


def check_flags(config: Mapping[str, Any], where: str, names: Sequence[str]) -> None:
    """Raise `EngineFailed` for a value that is there and is not true or false."""
    for name in names:
        value = config.get(name)
        if value is not None and not isinstance(value, bool):
            raise EngineFailed(f"{where}: {name} is {shown(value)}, not true or false")


def check_rules(rules: Mapping[str, bool], where: str) -> None:
    """Raise `EngineFailed` naming the first rule that does not hold."""
    for rule, holds in rules.items():
        if not holds:
            raise EngineFailed(f"{where}: {rule}")


def is_real(value: object) -> bool:
    """True for a finite number that is not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
