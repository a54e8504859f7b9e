"""Elements of V2 tensors: datatypes, shapes, and conversion between raw bytes and values.

Raw data is little-endian and row-major, as in the Open Inference Protocol's binary extension; each
BYTES element is preceded by its length in four bytes. Counts are Python integers, so the product of
a shape cannot overflow, and are bounded before anything is allocated.
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
MAX_ELEMENTS = 2**16  # of all tensors of a request together; each becomes a Python object
MAX_RANK = 8
MAX_PARAMETERS = 256  # per request, input or output
MAX_PARAMETER = 2**17  # characters per value, since they are read on the event loop
MAX_NAME = 64  # characters of a client's name repeated in an error

_LENGTH = struct.Struct("<I")
_TOO_LARGE = {"FP16": 65_520.0, "FP32": 2.0**128 - 2.0**103}  # these round to infinity


def check_datatype(name: str, datatype: object) -> str:
    """Return the datatype if the protocol has it. Raises `InvalidRequest`."""
    if isinstance(datatype, str) and datatype in DATATYPES:
        return datatype
    shown = str(datatype)[:16] if isinstance(datatype, str) else "no string"
    raise input_error(name, f"has datatype {shown!r}; known are {', '.join(sorted(DATATYPES))}")


def count_elements(name: str, shape: Iterable[object]) -> tuple[tuple[int, ...], int]:
    """The checked shape and its number of elements. Raises `InvalidRequest` or `TooLarge`."""
    sides: list[int] = []
    for side in shape:
        if not isinstance(side, int) or isinstance(side, bool) or not 0 <= side < 2**63:
            raise input_error(name, "has a shape that is not a list of whole numbers from 0")
        sides.append(side)
        if len(sides) > MAX_RANK:
            raise input_error(name, f"has more than {MAX_RANK} dimensions")
    count = math.prod(sides)
    if count > MAX_ELEMENTS:
        message = f"input {name[:MAX_NAME]!r} has shape {sides}, more than {MAX_ELEMENTS} elements"
        raise TooLarge(message, param=name[:MAX_NAME])
    return tuple(sides), count


def check_parameters(values: Mapping[str, object]) -> None:
    """Raise `TooLarge` for too many or too long parameters."""
    if len(values) > MAX_PARAMETERS:
        raise TooLarge(f"there are {len(values)} parameters; at most {MAX_PARAMETERS} are taken")
    for name, value in values.items():
        if isinstance(value, str) and len(value) > MAX_PARAMETER:
            shown = name[:MAX_NAME]
            message = f"parameter {shown!r} has {len(value)} characters"
            raise TooLarge(f"{message}; at most {MAX_PARAMETER} are taken", param=shown)


class ElementCount:
    """Bounds the number of elements of all tensors of one request together."""

    def __init__(self) -> None:
        self._left = MAX_ELEMENTS

    def add(self, name: str, count: int) -> None:
        """Count one tensor's elements. Raises `TooLarge`."""
        self._left -= count
        if self._left < 0:
            shown = name[:MAX_NAME]
            message = f"with input {shown!r} the tensors have more than {MAX_ELEMENTS} elements"
            raise TooLarge(message, param=shown)


def check_count(name: str, expected: int, found: int) -> None:
    if expected != found:
        raise input_error(name, f"has {found} elements, but its shape means {expected}")


def check_values(name: str, datatype: str, values: Sequence[object]) -> Sequence[object]:
    """Check a JSON list against the datatype. BYTES are strings and returned as UTF-8."""
    if datatype == "BYTES":
        return [_encode(name, row, value) for row, value in enumerate(values)]
    if datatype == "BOOL":
        _check_each(name, datatype, values, lambda v: type(v) is bool)
        return values
    if datatype.startswith("FP"):
        _check_each(name, datatype, values, lambda v: type(v) in (int, float))
        return [_float(name, datatype, row, value) for row, value in enumerate(values)]
    low, high = int_range(datatype)
    _check_each(name, datatype, values, lambda v: type(v) is int)
    for row, value in enumerate(values):
        if not low <= value <= high:  # type: ignore[operator]
            raise input_error(name, f"holds a number out of {datatype}'s range", row)
    return values


def int_range(datatype: str) -> tuple[int, int]:
    bits = 8 * struct.calcsize("<" + FORMATS[datatype])
    return (0, 2**bits - 1) if datatype[0] == "U" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def unpack_tensor(name: str, datatype: str, count: int, raw: bytes) -> Sequence[object]:
    """Decode exactly `count` values, which use all of `raw`. Raises `InvalidRequest`."""
    if datatype == "BYTES":
        return _unpack_bytes(name, count, raw)
    layout = f"<{count}{FORMATS[datatype]}"
    expected = struct.calcsize(layout)
    if len(raw) != expected:
        raise input_error(name, f"has {len(raw)} raw bytes, but its shape means {expected}")
    if datatype == "BOOL" and raw.strip(b"\x00\x01"):
        raise input_error(name, "holds a BOOL that is neither 0 nor 1")
    values = struct.unpack(layout, raw)
    if datatype.startswith("FP"):
        for row, value in enumerate(values):
            if not math.isfinite(value):
                raise input_error(name, "holds a number that is not finite", row)
    return values


def _unpack_bytes(name: str, count: int, raw: bytes) -> list[bytes]:
    rows: list[bytes] = []
    position, end = 0, len(raw)
    while position < end:
        if end - position < 4 or len(rows) == count:
            raise input_error(name, f"has raw bytes left over after {len(rows)} elements")
        (length,) = _LENGTH.unpack_from(raw, position)
        position += 4
        if length > end - position:
            message = f"says it has {length} bytes, but {end - position} are left"
            raise input_error(name, message, len(rows))
        rows.append(raw[position : position + length])
        position += length
    check_count(name, count, len(rows))
    return rows


def pack_tensor(tensor: Tensor) -> bytes:
    if tensor.datatype == "BYTES":
        parts: list[bytes] = []
        for value in tensor.data:
            row: bytes = value  # type: ignore[assignment]
            parts += (_LENGTH.pack(len(row)), row)
        return b"".join(parts)
    return struct.pack(f"<{len(tensor.data)}{FORMATS[tensor.datatype]}", *tensor.data)


def _check_each(name: str, datatype: str, values: Sequence[object], is_valid: Any) -> None:
    for row, value in enumerate(values):
        if not is_valid(value):
            raise input_error(name, f"holds something that is no {datatype}", row)


def _encode(name: str, row: int, value: object) -> bytes | None:
    if value is None:
        return None  # refused where the input is read, unless it is an optional one
    if not isinstance(value, str):
        raise input_error(name, "holds something that is no string", row)
    return value.encode("utf-8")


def _float(name: str, datatype: str, row: int, value: Any) -> float:
    """A finite number that the datatype can hold."""
    try:
        number = float(value)
    except OverflowError as error:
        raise input_error(name, f"holds a number that is too large for {datatype}", row) from error
    if abs(number) >= _TOO_LARGE.get(datatype, math.inf) and math.isfinite(number):
        raise input_error(name, f"holds a number that is too large for {datatype}", row)
    if not math.isfinite(number):
        raise input_error(name, "holds a number that is not finite", row)
    return number


def input_error(name: str, problem: str, row: int | None = None) -> InvalidRequest:
    """The error of one input; `problem` completes the sentence after its name."""
    shown = name[:MAX_NAME]
    return InvalidRequest(f"input {shown!r} {problem}", param=shown, row=row)
