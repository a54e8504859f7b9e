"""The V2 inference protocol as Python values: tensors, requests, responses, and typed access to
them.

`wire_json` and `wire_proto` translate bytes to and from these; a model's codec reads and creates
them. BYTES elements are always `bytes` here, whatever form the transport used (UTF-8 text, base64
or raw).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from predictors.errors import InvalidRequest, TooLarge
from predictors.protocol.call import ANY_ADAPTER, NUMBER, AdapterAccess
from predictors.protocol.images.urls import read_base64
from predictors.protocol.v2.content_types import check_number_type, check_text_type, is_base64_file

Scalar = str | int | float | bool

VERSION = "1"  # of every model
MAX_TEXT_BYTES = 4 * 2**20  # per row

INTEGERS = frozenset(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64))
"""Datatypes of whole numbers."""

_WHOLE = re.compile(r"\s*[+-]?[0-9]{1,30}\s*")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One named tensor. `data` is flat and row-major: `bytes` for BYTES (None for a null in JSON),
    else int, float or bool.

    `text` is True for BYTES elements that came as JSON strings (a picture is then base64), False
    for raw ones.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Sequence[object]
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    text: bool = False


@dataclass(frozen=True, slots=True)
class V2Request:
    """One inference request. Empty `outputs` means all. `binary` maps names of outputs to whether
    they are returned raw; `binary_default` holds for the others. Over gRPC every output is in raw
    contents, and files that are not asked for raw are base64 in there."""

    model: str
    id: str
    inputs: tuple[Tensor, ...]
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    binary: Mapping[str, bool] = field(default_factory=dict)
    binary_default: bool = False
    version: str = ""
    is_streamed: bool = False
    """True if it may have several responses: over gRPC's `ModelStreamInfer`."""
    adapters: AdapterAccess = ANY_ADAPTER
    """Not of the message: those that the model's name and the caller's key stand for."""


@dataclass(frozen=True, slots=True)
class V2Response:
    """Parameters are int, bool or str, the only types that KServe's gRPC has."""

    model: str
    id: str
    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, str | int | bool] = field(default_factory=dict)
    version: str = ""
    is_final: bool = True
    """False if more responses to the same request follow."""


def num_bytes(message: V2Request | V2Response) -> int:
    tensors = message.inputs if isinstance(message, V2Request) else message.outputs
    columns = (tensor.data for tensor in tensors if tensor.datatype == "BYTES")
    return sum(len(x) for column in columns for x in column if isinstance(x, bytes))


class InputTensors:
    """Typed access to a request's inputs. `reject_unread` reports inputs that no `read_` method
    asked for.

    All inputs have shape [n] or [n, 1] with the same n, since users of tritonclient send both.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors: dict[str, Tensor] = {}
        for tensor in tensors:
            if tensor.name in self._tensors:
                raise InvalidRequest(
                    f"input {tensor.name[:64]!r} is given twice", param=tensor.name[:64]
                )
            self._tensors[tensor.name] = tensor
        self._unread = set(self._tensors)

    def read_bytes(self, name: str) -> list[bytes] | None:
        """BYTES elements of an input, or None if it is absent."""
        tensor = self._take(name, "BYTES")
        return None if tensor is None else [bytes(x) for x in tensor.data]  # type: ignore[call-overload]

    def read_text(self, name: str) -> list[str] | None:
        self._check(name, check_text_type)
        rows = self.read_bytes(name)
        return None if rows is None else [_utf8(name, i, row) for i, row in enumerate(rows)]

    def read_optional_text(self, name: str) -> list[str | None] | None:
        """`read_text` of an input whose elements may be null in JSON."""
        self._check(name, check_text_type)
        tensor = self._take(name, "BYTES", may_be_null=True)
        if tensor is None:
            return None
        rows: Sequence[bytes | None] = tensor.data  # type: ignore[assignment]
        return [None if row is None else _utf8(name, i, row) for i, row in enumerate(rows)]

    def read_files(self, name: str) -> list[bytes] | None:
        """Files of a BYTES input, or None. JSON strings hold them as base64 or data URLs."""
        tensor = self._tensors.get(name)
        if tensor is not None:
            self._tensors[name] = as_files(tensor)
        return self.read_bytes(name)

    def read_ints(self, name: str) -> list[int] | None:
        """Elements of an INT64 or narrower integer input, or None."""
        self._check(name, check_number_type)
        tensor = self._tensors.get(name)
        if tensor is not None and tensor.datatype not in INTEGERS:
            raise InvalidRequest(
                f"input {name!r} has datatype {tensor.datatype[:16]}; it takes INT64", param=name
            )
        tensor = self._take(name, None)
        return None if tensor is None else [int(x) for x in tensor.data]  # type: ignore[call-overload]

    def reject_unread(self) -> None:
        if self._unread:
            name = sorted(self._unread)[0][:64]
            raise InvalidRequest(f"unknown input {name!r}", param=name)

    def _check(self, name: str, check: Callable[[str, Mapping[str, object]], None]) -> None:
        tensor = self._tensors.get(name)
        if tensor is not None and tensor.parameters:
            check(name, tensor.parameters)

    def _take(self, name: str, datatype: str | None, *, may_be_null: bool = False) -> Tensor | None:
        self._unread.discard(name)
        tensor = self._tensors.get(name)
        if tensor is None:
            return None
        if datatype is not None and tensor.datatype != datatype:
            raise InvalidRequest(
                f"input {name!r} has datatype {tensor.datatype[:16]}; it takes {datatype}",
                param=name,
            )
        shape = tensor.shape
        if not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
            raise InvalidRequest(
                f"input {name!r} has shape {list(shape)[:8]}; it takes [n] or [n, 1]", param=name
            )
        if shape[0] < 1:
            raise InvalidRequest(f"input {name!r} has no rows", param=name)
        if datatype == "BYTES" and not may_be_null and None in tensor.data:
            row = tensor.data.index(None)
            raise InvalidRequest(f"input {name!r} holds null", param=name, row=row)
        return tensor


class Parameters:
    """Typed access to request parameters. `reject_unread` reports those that no `read_` method
    asked for.

    Numbers may be numeric strings, since KServe's gRPC has no double. `ignored` names are accepted
    unread.
    """

    def __init__(
        self, values: Mapping[str, Scalar], *, ignored: Sequence[str] = ("binary_data_output",)
    ) -> None:
        self._values = values
        self._unread = {name for name in values if name not in ignored}

    def has_any(self, names: Collection[str]) -> bool:
        """True if one of `names` is given."""
        return not self._values.keys().isdisjoint(names)

    def read_int(self, name: str) -> int | None:
        """An integer or None. 28.0 and "28" are integers; 1.5, true and "x" are not."""
        value = self._take(name)
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, str) and _WHOLE.fullmatch(value):
            return int(value)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        raise InvalidRequest(f"{name} must be a whole number, not {str(value)[:32]!r}", param=name)

    def read_float(self, name: str) -> float | None:
        value = self._take(name)
        if value is None:
            return None
        number = math.nan
        is_number = isinstance(value, str) and NUMBER.fullmatch(value)
        if is_number or (isinstance(value, int | float) and not isinstance(value, bool)):
            try:
                number = float(value)
            except (ValueError, OverflowError):
                number = math.nan
        if not math.isfinite(number):
            raise InvalidRequest(
                f"{name} must be a finite number, not {str(value)[:32]!r}", param=name
            )
        return number

    def read_flag(self, name: str) -> bool | None:
        value = self._take(name)
        if value is None or isinstance(value, bool):
            return value
        shown = str(value)[:32]
        raise InvalidRequest(f"{name} must be true or false, not {shown!r}", param=name)

    def read_text(self, name: str) -> str | None:
        value = self._take(name)
        if value is None or isinstance(value, str):
            return value
        raise InvalidRequest(f"{name} must be a string, not {str(value)[:32]!r}", param=name)

    def reject_unread(self) -> None:
        if self._unread:
            name = sorted(self._unread)[0][:64]
            raise InvalidRequest(f"unknown parameter {name!r}", param=name)

    def _take(self, name: str) -> Scalar | None:
        self._unread.discard(name)
        return self._values.get(name)


def as_files(tensor: Tensor) -> Tensor:
    """A tensor of files, its base64 or data URLs decoded to bytes. Raises `InvalidRequest` for a
    content type that no file has."""
    is_base64 = is_base64_file(tensor.name, tensor.parameters, is_text=tensor.text)
    if tensor.datatype != "BYTES" or not is_base64:
        return tensor
    rows: Sequence[bytes | None] = tensor.data  # type: ignore[assignment]
    files = [
        None if row is None else read_base64(row, param=tensor.name, row=i)
        for i, row in enumerate(rows)
    ]
    return replace(tensor, data=files, text=False, parameters={})


def count_rows(**columns: Sequence[object] | None) -> int:
    """The number of rows that all present columns share. Raises `InvalidRequest` if they differ."""
    lengths = {name: len(column) for name, column in columns.items() if column is not None}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise InvalidRequest(f"inputs disagree on the number of rows: {found}")
    return next(iter(lengths.values()), 0)


def _utf8(name: str, row: int, raw: bytes) -> str:
    if len(raw) > MAX_TEXT_BYTES:  # decoding a longer one would block the event loop for others
        message = f"{name} has {len(raw)} bytes; at most {MAX_TEXT_BYTES} are taken"
        raise TooLarge(message, param=name, row=row)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name} is not UTF-8", param=name, row=row) from error
