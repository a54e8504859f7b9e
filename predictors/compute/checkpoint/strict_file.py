"""Reads one safetensors file that somebody else brought: its header within bounds, every byte of it
accounted for, and its tensors as float32 numpy arrays, without torch and without mapping the file.

A file that is cut short while it is read gives an error, where a mapping would end the process.
Every problem is an `InvalidRequest` that names the file by its last component.
"""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictors.compute.checkpoint.headers import OTHER_FORMATS, Header
from predictors.errors import InvalidRequest

MAX_HEADER_BYTES = 16 * 2**20
"""Trainers write captions' statistics into headers: megabytes, where names need a tenth of one."""
MAX_TENSORS = 20_000
MAX_NAME = 300  # characters of a tensor's name
MAX_DIMS = 8
SHOWN_NAME = 120  # characters of a name that a message repeats
LARGEST = 1e6  # as `values.LARGEST`, which needs torch
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16,
    "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip
"""Of one value, by safetensors' names of the dtypes."""
READ = ("F64", "F32", "F16", "BF16")
"""Dtypes of weights that are read."""
_NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "i1", "U8": "u1",
}  # fmt: skip
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_PIECE = 2**27  # bytes of one read: the kernel transfers less than 2 GiB


def named(name: str) -> str:
    """A tensor's name as a message shows it: ASCII, shortened."""
    text = ascii(name)[1:-1]
    return text if len(text) <= SHOWN_NAME else f"{text[:SHOWN_NAME]}..."


def open_file(path: Path) -> tuple[int, int]:
    """A descriptor of a regular file, and its bytes. Raises `InvalidRequest` for anything else."""
    try:
        # a pipe without a writer would block
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise InvalidRequest(f"{named(path.name)} can't be read: {reason}") from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise InvalidRequest(f"{named(path.name)} is no regular file")
    return descriptor, found.st_size


def read_small_file(path: Path, at_most: int) -> bytes:
    """A whole file of at most so many bytes. Raises `InvalidRequest`."""
    descriptor, size = open_file(path)
    with os.fdopen(descriptor, "rb") as file:
        raw = file.read(at_most + 1)
    if len(raw) > at_most:
        raise InvalidRequest(f"{named(path.name)} has {size} bytes; at most {at_most} are read")
    return raw


def parse_object(raw: bytes, where: str) -> dict[str, Any]:
    """A JSON object without a name twice, NaN or infinities. Raises `InvalidRequest`."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise InvalidRequest(f"{where} has {named(twice)} twice in one object")
        return found

    def refuse(constant: str) -> None:
        raise InvalidRequest(f"{where} has {constant}, which is no number of JSON")

    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{where} is not JSON in UTF-8 that can be read") from error
    if not isinstance(found, dict):
        raise InvalidRequest(f"{where} is a {type(found).__name__}, not an object")
    return found


class StrictFile:
    """An open safetensors file. A context manager; one thread at a time."""

    def __init__(self, path: Path, name: str = "") -> None:
        """`name` stands for that of the path in messages. Raises `InvalidRequest` for a file whose
        header and length do not fit together."""
        self.name = named(name or path.name)
        if why := OTHER_FORMATS.get(path.suffix.lower()):
            raise InvalidRequest(f"{self.name}: {why}")
        self._descriptor, size = open_file(path)
        self._offsets: dict[str, tuple[int, int]] = {}
        self.headers: dict[str, Header] = {}
        """In the order of the file's header."""
        self.metadata: Mapping[str, str] = {}
        try:
            self._read_header(size)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> StrictFile:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._descriptor)

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor as float32, writable and contiguous.

        Raises `InvalidRequest` for a dtype other than `READ`, and for NaN, an infinity or a
        magnitude beyond `LARGEST`.
        """
        header = self.headers[name]
        if header.dtype not in READ:
            raise InvalidRequest(
                f"{self.name}: tensor {named(name)} is {header.dtype}; read are {', '.join(READ)}: "
                "store it as one of these"
            )
        stored = self._read_raw(name)
        values: NDArray[Any]
        if header.dtype == "BF16":
            values = (stored.astype(np.uint32) << 16).view(np.float32)
        else:
            values = stored
        self._check_values(name, values)
        return np.ascontiguousarray(values, np.float32).reshape(header.shape)

    def read_scalar(self, name: str) -> float:
        """The one value of a tensor of a number type. Raises `InvalidRequest`."""
        header = self.headers[name]
        if prod(header.shape) != 1 or header.dtype not in _NUMPY:
            raise InvalidRequest(
                f"{self.name}: tensor {named(name)} is {header.dtype} of shape "
                f"{list(header.shape)}; it must be one number"
            )
        if header.dtype in READ:
            return float(self.read(name).reshape(()))
        return float(self._read_raw(name).reshape(()))

    def _read_raw(self, name: str) -> NDArray[Any]:
        header, (begin, end) = self.headers[name], self._offsets[name]
        stored = np.empty(prod(header.shape), _NUMPY[header.dtype])
        self._fill(stored.view(np.uint8).data, begin, end)
        return stored

    def _check_values(self, name: str, values: NDArray[Any]) -> None:
        with np.errstate(invalid="ignore"):
            # NaN where there is one
            largest = max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))
        if not largest <= LARGEST:
            raise InvalidRequest(
                f"{self.name}: tensor {named(name)} holds {largest:.3g}; trained weights "
                f"are finite and far below {LARGEST:.0e}: the file is damaged"
            )

    def _fill(self, target: memoryview, begin: int, end: int) -> None:
        at = 0
        while at < end - begin:
            piece = target[at : at + _PIECE]
            try:
                count = os.preadv(self._descriptor, [piece], begin + at)
            except OSError as error:
                raise InvalidRequest(f"{self.name} can't be read: {error.strerror}") from error
            if count == 0:
                raise InvalidRequest(f"{self.name} became shorter while it was read")
            at += count

    # -- header ----------------------------------------------------------------------------------
    def _read_header(self, size: int) -> None:
        beginning = bytearray(min(8, size))
        self._fill(memoryview(beginning), 0, len(beginning))
        length = int.from_bytes(beginning, "little")
        if size < 8 or length < 2 or length > size - 8:
            if beginning.startswith(_PICKLES):  # else some lengths of headers begin so as well
                raise InvalidRequest(f"{self.name} is no safetensors file; {OTHER_FORMATS['.pt']}")
            raise InvalidRequest(
                f"{self.name} is no safetensors file, or cut short: it has {size} bytes, and its "
                f"first eight announce a header of {length}"
            )
        if length > MAX_HEADER_BYTES:
            raise InvalidRequest(
                f"{self.name} has a header of {length} bytes; at most {MAX_HEADER_BYTES} are read"
            )
        raw = bytearray(length)
        self._fill(memoryview(raw), 8, 8 + length)
        content = parse_object(bytes(raw), f"the header of {self.name}")
        self.metadata = self._check_metadata(content.pop("__metadata__", {}))
        if len(content) > MAX_TENSORS:
            raise self._bad(f"has {len(content)} tensors; at most {MAX_TENSORS} are read")
        for name, entry in content.items():
            self._add(name, entry, 8 + length)
        self._check_whole(8 + length, size)

    def _check_metadata(self, found: object) -> Mapping[str, str]:
        if not isinstance(found, dict) or not all(isinstance(x, str) for x in found.values()):
            raise self._bad("has a __metadata__ that is no object of texts")
        return found

    def _add(self, name: str, entry: object, base: int) -> None:
        if len(name) > MAX_NAME:
            raise self._bad(f"has a tensor whose name has {len(name)} characters, {named(name)}")
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise self._bad(f"has an entry {named(name)} without dtype, shape and data_offsets")
        dtype, shape, offsets = (entry[field] for field in ("dtype", "shape", "data_offsets"))
        if not isinstance(dtype, str) or dtype not in BITS:
            raise self._bad(f"gives tensor {named(name)} the dtype {ascii(dtype)[:40]}")
        if not _are_counts(shape) or len(shape) > MAX_DIMS:
            raise self._bad(f"gives tensor {named(name)} the shape {ascii(shape)[:80]}")
        if not _are_counts(offsets) or len(offsets) != 2:
            raise self._bad(f"gives tensor {named(name)} the data_offsets {ascii(offsets)[:80]}")
        begin, end = offsets
        needed = prod(shape) * BITS[dtype] // 8
        if end - begin != needed:
            raise self._bad(
                f"gives tensor {named(name)} {end - begin} bytes; {dtype} of shape "
                f"{ascii(shape)[:80]} has {needed}"
            )
        self.headers[name] = Header(dtype, tuple(shape))
        self._offsets[name] = (base + begin, base + end)

    def _check_whole(self, base: int, size: int) -> None:
        """Tensors lie one behind the other, from the header's end to the file's."""
        at = base
        for name, (begin, end) in sorted(self._offsets.items(), key=lambda item: item[1]):
            if begin != at:
                kind = "overlap before" if begin < at else "leave a gap before"
                raise self._bad(f"has tensors that {kind} {named(name)}")
            at = end
        if at != size:
            raise InvalidRequest(
                f"{self.name} has {size} bytes, and its header describes {at}: it is cut short, "
                "or something was added"
            )

    def _bad(self, text: str) -> InvalidRequest:
        return InvalidRequest(f"the header of {self.name} {text}")


def _are_counts(values: object) -> bool:
    if not isinstance(values, list):
        return False
    return all(type(value) is int and 0 <= value < 2**48 for value in values)
