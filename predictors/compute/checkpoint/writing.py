"""Writes checkpoint folders, which are complete or not there, and safetensors files tensor by
tensor: never more than one of them is in memory, however large the file becomes.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from predictors.compute.checkpoint.headers import Header
from predictors.compute.checkpoint.shards import DTYPES
from predictors.errors import EngineFailed, InvalidRequest

ALIGNMENT = 8  # of the first tensor, as the format's own library writes it
ERROR_NUMBER = re.compile(r"(?:Errno|os error) ([0-9]{1,4})\b")
"""In the messages of `OSError`, of `shutil.Error`, which has one for each file, and of Rust."""
NOT_READ = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP)


def check_new(target: Path) -> None:
    """Raise `InvalidRequest` if `new_folder` can't make the folder `target`."""
    if target.exists():
        raise InvalidRequest(f"{target.name} exists already; nothing was written")
    growing = _growing(target)
    if growing.exists():
        raise InvalidRequest(f"{growing.name} is left of an earlier run; remove it first")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A path beside `target` for a folder, which becomes `target` if the block ends without an
    exception, and is removed otherwise.

    Raises as `check_new`, and `EngineFailed` with the system's reason if it can't be written, or
    if a file that is copied into it can't be read.
    """
    check_new(target)
    growing = _growing(target)
    try:
        yield growing
        growing.rename(target)
    except (OSError, SafetensorError) as error:
        found = ERROR_NUMBER.search(str(error))
        number = int(found[1]) if found else 0
        reason = os.strerror(number) if number else "the system does not say why"
        source = _unreadable(error, growing) if number in NOT_READ else None
        if source is not None:
            message = f"{source.parent.name}/{source.name} can't be read: {reason}"
            raise EngineFailed(f"{message}; fetch the checkpoint again") from error
        raise EngineFailed(f"{target.name} can't be written: {reason}") from error
    finally:
        shutil.rmtree(growing, ignore_errors=True)


def _unreadable(error: OSError | SafetensorError, growing: Path) -> Path | None:
    """The first file of the error, outside of `growing`, that is not there or may not be read, such
    as a link of a hub's cache to a file that was never fetched. None if there is no such file."""
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
        names = [each[0] for each in error.args[0]]  # of each copy its source
    else:
        names = [getattr(error, "filename", None)]
    for file in (Path(name) for name in names if name):
        is_ours = growing in (file, *file.parents) or file in growing.parents
        if not is_ours and file.parent.is_dir() and not os.access(file, os.R_OK):
            return file
    return None


def _growing(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def write_tensors(
    path: Path, headers: Mapping[str, Header], tensors: Iterable[tuple[str, Tensor]]
) -> int:
    """Write `tensors` in the order, dtypes and shapes of `headers`; returns their bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, header in headers.items():
        start, end = end, end + math.prod(header.shape) * DTYPES[header.dtype].itemsize
        entries[name] = {
            "dtype": header.dtype,
            "shape": list(header.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    names = iter(headers)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors:
            header = headers[name]
            assert name == next(names)
            assert tensor.dtype == DTYPES[header.dtype]
            assert tuple(tensor.shape) == header.shape
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return end
