"""Elements of V2 tensors: datatypes, shapes, and raw bytes to values and back. Knows neither JSON
nor protobuf; both edges use it.

Raw is little-endian and row-major, as the Open Inference Protocol's binary extension says; each
element of a BYTES tensor has its length in four bytes before it. Counts are Python integers, so
that no product of a shape overflows, and they are bounded before anything is allocated.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from predictors.errors import InvalidRequest, TooLarge
from predictors.protocol.v2.values import Tensor

FORMATS = {
    "BOOL": "?",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
DATATYPES = frozenset(FORMATS) | {"BYTES"}
MAX_ELEMENTS = 2**16  # of all tensors of a request together; a Python object each
MAX_RANK = 8
MAX_PARAMETERS = 256  # of a request, of an input, of an output
MAX_PARAMETER = 2**17  # characters of one: they are read on the event loop
MAX_NAME = 64  # characters of a caller's own name that an error repeats

_LENGTH = struct.Struct("<I")


def check_datatype(name: str, datatype: object) -> str:
    """The datatype, if it is one of the protocol's."""
    if isinstance(datatype, str) and datatype in DATATYPES:
        return datatype
    shown = str(datatype)[:16] if isinstance(datatype, str) else "no string"
    raise _wrong(name, f"has datatype {shown!r}; known are {', '.join(sorted(DATATYPES))}")


def count_elements(name: str, shape: Iterable[object]) -> tuple[tuple[int, ...], int]:
    """A checked shape and the number of elements that it means."""
    sides: list[int] = []
    for side in shape:
        if not isinstance(side, int) or isinstance(side, bool) or not 0 <= side < 2**63:
            raise _wrong(name, "has a shape that is not a list of whole numbers from 0")
        sides.append(side)
        if len(sides) > MAX_RANK:
            raise _wrong(name, f"has more than {MAX_RANK} dimensions")
    count = math.prod(sides)
    if count > MAX_ELEMENTS:
        message = f"input {name[:MAX_NAME]!r} has shape {sides}, more than {MAX_ELEMENTS} elements"
        raise TooLarge(message, param=name[:MAX_NAME])
    return tuple(sides), count


def check_parameters(values: Mapping[str, object]) -> None:
    """Raise `TooLarge` for more, or longer, parameters than are read."""
    if len(values) > MAX_PARAMETERS:
        raise TooLarge(f"there are {len(values)} parameters; at most {MAX_PARAMETERS} are taken")
    for name, value in values.items():
        if isinstance(value, str) and len(value) > MAX_PARAMETER:
            shown = name[:MAX_NAME]
            message = f"parameter {shown!r} has {len(value)} characters"
            raise TooLarge(f"{message}; at most {MAX_PARAMETER} are taken", param=shown)


class ElementCount:
    """How many elements the tensors of one request have together, as a bound."""

    def __init__(self) -> None:
        self._left = MAX_ELEMENTS

    def add(self, name: str, count: int) -> None:
        """Count one tensor's; raises `TooLarge`."""
        self._left -= count
        if self._left < 0:
            shown = name[:MAX_NAME]
            message = f"with input {shown!r} the tensors have more than {MAX_ELEMENTS} elements"
            raise TooLarge(message, param=shown)


def check_count(name: str, expected: int, found: int) -> None:
    """Raise when the data has another number of elements than the shape says."""
    if expected != found:
        raise _wrong(name, f"has {found} elements, but its shape means {expected}")


def check_values(name: str, datatype: str, values: Sequence[object]) -> Sequence[object]:
    """Values of a JSON list, each checked for its datatype; BYTES must be strings here and come
    out as UTF-8."""
    if datatype == "BYTES":
        return [_encode(name, row, value) for row, value in enumerate(values)]
    if datatype == "BOOL":
        _each(name, datatype, values, lambda v: isinstance(v, bool))
        return values
    if datatype.startswith("FP"):
        _each(name, datatype, values, lambda v: isinstance(v, int | float) and not _is_bool(v))
        return [_float(name, row, value) for row, value in enumerate(values)]
    low, high = int_range(datatype)
    _each(name, datatype, values, lambda v: isinstance(v, int) and not _is_bool(v))
    for row, value in enumerate(values):
        if not low <= value <= high:  # type: ignore[operator]
            raise _wrong(name, f"holds a number out of {datatype}'s range", row)
    return values


def int_range(datatype: str) -> tuple[int, int]:
    """Smallest and largest value of an integer datatype."""
    bits = 8 * struct.calcsize("<" + FORMATS[datatype])
    return (0, 2**bits - 1) if datatype[0] == "U" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def unpack_tensor(name: str, datatype: str, count: int, raw: bytes) -> Sequence[object]:
    """`count` values from raw bytes, all of which must be used."""
    if datatype == "BYTES":
        return _unpack_bytes(name, count, raw)
    layout = f"<{count}{FORMATS[datatype]}"
    expected = struct.calcsize(layout)
    if len(raw) != expected:
        raise _wrong(name, f"has {len(raw)} raw bytes, but its shape means {expected}")
    if datatype == "BOOL" and raw.strip(b"\x00\x01"):
        raise _wrong(name, "holds a BOOL that is neither 0 nor 1")
    values = struct.unpack(layout, raw)
    if datatype.startswith("FP"):
        for row, value in enumerate(values):
            if not math.isfinite(value):
                raise _wrong(name, "holds a number that is not finite", row)
    return values


def _unpack_bytes(name: str, count: int, raw: bytes) -> list[bytes]:
    rows: list[bytes] = []
    position, end = 0, len(raw)
    while position < end:
        if end - position < 4 or len(rows) == count:
            raise _wrong(name, f"has raw bytes left over after {len(rows)} elements")
        (length,) = _LENGTH.unpack_from(raw, position)
        position += 4
        if length > end - position:
            message = f"says it has {length} bytes, but {end - position} are left"
            raise _wrong(name, message, len(rows))
        rows.append(raw[position : position + length])
        position += length
    check_count(name, count, len(rows))
    return rows


def pack_tensor(tensor: Tensor) -> bytes:
    """The raw bytes of a tensor of ours."""
    if tensor.datatype == "BYTES":
        parts: list[bytes] = []
        for value in tensor.data:
            row: bytes = value  # type: ignore[assignment]
            parts += (_LENGTH.pack(len(row)), row)
        return b"".join(parts)
    return struct.pack(f"<{len(tensor.data)}{FORMATS[tensor.datatype]}", *tensor.data)


def _each(name: str, datatype: str, values: Sequence[object], is_right: Any) -> None:
    for row, value in enumerate(values):
        if not is_right(value):
            raise _wrong(name, f"holds something that is no {datatype}", row)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _encode(name: str, row: int, value: object) -> bytes:
    if not isinstance(value, str):
        raise _wrong(name, "holds something that is no string", row)
    return value.encode("utf-8")


def _float(name: str, row: int, value: Any) -> float:
    try:
        number = float(value)
    except OverflowError as error:
        raise _wrong(name, "holds a number that is too large", row) from error
    if not math.isfinite(number):
        raise _wrong(name, "holds a number that is not finite", row)
    return number


def _wrong(name: str, problem: str, row: int | None = None) -> InvalidRequest:
    shown = name[:MAX_NAME]
    return InvalidRequest(f"input {shown!r} {problem}", param=shown, row=row)
