"""Decodes V2 requests from the bytes of a `ModelInferRequest`, without protobuf's own objects.

Fields, inputs and parameters are counted while they are read, so that a small message cannot become
millions of objects. Known fields follow protobuf's rules: repeated ones may be packed or not, the
last of a singular one counts, `contents` are merged, unknown fields are skipped but counted.
Workers import this module, so nothing here may load gRPC.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from predictors.errors import InvalidRequest, TooLarge
from predictors.protocol.grpc.protobuf_reader import (
    FIXED64,
    LENGTH,
    VARINT,
    Span,
    WireReader,
    signed,
)
from predictors.protocol.v2.content_types import check_request, wants_raw
from predictors.protocol.v2.tensors import (
    MAX_ELEMENTS,
    MAX_NAME,
    MAX_PARAMETERS,
    ElementCount,
    check_count,
    check_datatype,
    check_parameters,
    check_values,
    count_elements,
    input_error,
    unpack_tensor,
)
from predictors.protocol.v2.values import Scalar, Tensor, V2Request
from predictors.protocol.v2.wire_json import MAX_ID, MAX_TENSORS

MAX_FIELDS = 2 * MAX_ELEMENTS  # of a whole message; each BYTES element is a field
MAX_NAME_BYTES = 4096  # of a model name, version or id
MAX_OUTER_FIELDS = 1024  # outermost fields of a message

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
# field numbers of InferTensorContents, with the conversion of one varint
_INTEGERS: dict[int, tuple[str, Callable[[int], object]]] = {
    1: ("bool_contents", bool),
    2: ("int_contents", lambda value: signed(value, 32)),
    3: ("int64_contents", lambda value: signed(value, 64)),
    4: ("uint_contents", lambda value: value & 0xFFFF_FFFF),
    5: ("uint64_contents", lambda value: value),
}
_FLOATS = {6: ("fp32_contents", "f"), 7: ("fp64_contents", "d")}
_BYTES = 8


@dataclass(slots=True)
class _Input:
    """One `InferInputTensor` before its checks."""

    name: str = ""
    datatype: str = ""
    shape: list[int] = field(default_factory=list)
    parameters: dict[str, Scalar | None] = field(default_factory=dict)
    contents: dict[str, list[object]] = field(default_factory=dict)
    has_contents: bool = False


def model_of(raw: bytes) -> tuple[str, str]:
    """Name and version, from the outermost fields only; raises like `decode_proto_request`."""
    reader = WireReader(raw, MAX_OUTER_FIELDS)
    found = {1: "", 2: ""}
    for number, wire, _, span in reader.fields(reader.whole):
        if number in found and wire == LENGTH:
            found[number] = _read_name(reader, span)
    return found[1], found[2]


def id_of(raw: bytes) -> str:
    """The caller's id of a request, empty if there is none that can be read."""
    try:
        reader = WireReader(raw, MAX_OUTER_FIELDS)
        found = ""
        for number, wire, _, span in reader.fields(reader.whole):
            if number == 3 and wire == LENGTH:
                found = _read_name(reader, span)
    except InvalidRequest:
        return ""
    return found[:MAX_ID]


def decode_proto_request(raw: bytes) -> V2Request:
    """Decode a serialised `ModelInferRequest`. Raises `InvalidRequest` or `TooLarge`."""
    reader = WireReader(raw, MAX_FIELDS)
    texts = {1: "", 2: "", 3: ""}  # model_name, model_version, id
    parameters: dict[str, Scalar | None] = {}
    inputs: list[_Input] = []
    outputs: list[tuple[str, dict[str, Scalar | None]]] = []
    raws: list[bytes] = []
    for number, wire, _, span in reader.fields(reader.whole):
        if wire != LENGTH:
            continue
        if number in texts:
            texts[number] = _read_name(reader, span)
        elif number == 4:
            _read_parameter(reader, span, parameters)
        elif number == 5:
            inputs.append(_read_input(reader, span))
        elif number == 6:
            outputs.append(_read_output(reader, span))
        elif number == 7:
            raws.append(reader.bytes(span))
        if max(len(inputs), len(outputs), len(raws)) > MAX_TENSORS:
            message = f"there may be {MAX_TENSORS} inputs and outputs"
            raise InvalidRequest(message, param="inputs")
    if not inputs:
        raise InvalidRequest("inputs must have at least one tensor", param="inputs")
    if len(texts[3]) > MAX_ID:
        raise InvalidRequest(f"id may have {MAX_ID} characters", param="id")
    if raws and len(raws) != len(inputs):
        text = f"there are {len(inputs)} inputs, but {len(raws)} raw_input_contents"
        raise InvalidRequest(text, param="raw_input_contents")
    elements = ElementCount()
    tensors = [_tensor(x, raws[i] if raws else None, elements) for i, x in enumerate(inputs)]
    values = _values(parameters)
    if "content_type" in values:
        check_request(values)
    asked, binary = _outputs(outputs)
    return V2Request(
        model=texts[1],
        id=texts[3],
        inputs=tuple(tensors),
        parameters=values,
        outputs=asked,
        binary=binary,
        binary_default=_flag(values.pop("binary_data_output", True)),
        version=texts[2],
    )


def _read_name(reader: WireReader, span: Span) -> str:
    if span[1] - span[0] > MAX_NAME_BYTES:
        raise InvalidRequest(f"a name or id of the message has more than {MAX_NAME_BYTES} bytes")
    return reader.text(span)


# -- reading ---------------------------------------------------------------------------------------
def _read_input(reader: WireReader, span: Span) -> _Input:
    found = _Input()
    for number, wire, value, inner in reader.fields(span):
        if number == 1 and wire == LENGTH:
            found.name = reader.text(inner)
        elif number == 2 and wire == LENGTH:
            found.datatype = reader.text(inner)
        elif number == 3 and wire == VARINT:
            found.shape.append(signed(value, 64))
        elif number == 3 and wire == LENGTH:
            found.shape += [signed(side, 64) for side in reader.varints(inner, MAX_TENSORS)]
        elif number == 4 and wire == LENGTH:
            _read_parameter(reader, inner, found.parameters)
        elif number == 5 and wire == LENGTH:
            found.has_contents = True
            _read_contents(reader, inner, found.contents)
        if len(found.shape) > MAX_TENSORS:
            raise InvalidRequest("an input has too many dimensions", param="shape")
    return found


def _read_contents(reader: WireReader, span: Span, found: dict[str, list[object]]) -> None:
    for number, wire, value, inner in reader.fields(span):
        new: Sequence[object]
        if number in _INTEGERS and wire in {VARINT, LENGTH}:
            name, convert = _INTEGERS[number]
            numbers = [value] if wire == VARINT else reader.varints(inner, MAX_ELEMENTS)
            new = [convert(x) for x in numbers]
        elif number in _FLOATS and wire != VARINT:
            name, kind = _FLOATS[number]
            new = reader.fixed(inner, kind, MAX_ELEMENTS)
        elif number == _BYTES and wire == LENGTH:
            name, new = "bytes_contents", [reader.bytes(inner)]
        else:
            continue
        values = found.setdefault(name, [])
        values += new
        if len(values) > MAX_ELEMENTS:
            raise TooLarge(f"{name} has more than {MAX_ELEMENTS} elements")


def _read_output(reader: WireReader, span: Span) -> tuple[str, dict[str, Scalar | None]]:
    name = ""
    parameters: dict[str, Scalar | None] = {}
    for number, wire, _, inner in reader.fields(span):
        if number == 1 and wire == LENGTH:
            name = reader.text(inner)
        elif number == 2 and wire == LENGTH:
            _read_parameter(reader, inner, parameters)
    return name, parameters


def _read_parameter(reader: WireReader, span: Span, found: dict[str, Scalar | None]) -> None:
    """Read one entry of a map of `InferParameter`. Its value is None if it has no known type."""
    name, value = "", None
    for number, wire, _, inner in reader.fields(span):
        if number == 1 and wire == LENGTH:
            name = reader.text(inner)
        elif number == 2 and wire == LENGTH:
            value = _read_value(reader, inner, value)
    found[name] = value
    if len(found) > MAX_PARAMETERS:
        raise TooLarge(f"there are more than {MAX_PARAMETERS} parameters")


def _read_value(reader: WireReader, span: Span, value: Scalar | None) -> Scalar | None:
    for number, wire, varint, inner in reader.fields(span):
        match number, wire:
            case 1, 0:
                value = bool(varint)
            case 2, 0:
                value = signed(varint, 64)
            case 3, 2:
                value = reader.text(inner)
            case 4, _ if wire == FIXED64:  # double_param of Triton; KServe's proto has none
                value = float(struct.unpack("<d", reader.bytes(inner))[0])
            case 5, 0:  # uint64_param of Triton
                value = varint
    return value


# -- checking --------------------------------------------------------------------------------------
def _values(parameters: dict[str, Scalar | None]) -> dict[str, Scalar]:
    for name, value in parameters.items():
        if value is None:
            shown = name[:MAX_NAME]
            message = f"parameter {shown!r} has no value that can be read"
            raise InvalidRequest(message, param=shown)
    check_parameters(parameters)
    return parameters  # type: ignore[return-value]


def _tensor(read: _Input, raw: bytes | None, elements: ElementCount) -> Tensor:
    name = read.name
    if not name:
        raise InvalidRequest("an input has no name", param="name")
    datatype = check_datatype(name, read.datatype)
    shape, count = count_elements(name, read.shape)
    elements.add(name, count)
    parameters = _values(read.parameters)
    for parameter in parameters:
        if parameter not in {"content_type", "encoding", "binary_data_size"}:
            raise input_error(name, f"has an unknown parameter {parameter[:MAX_NAME]!r}")
    if raw is not None:
        if read.has_contents:
            raise input_error(name, "has contents beside raw_input_contents")
        return Tensor(name, datatype, shape, unpack_tensor(name, datatype, count, raw), parameters)
    values = _contents(name, datatype, read.contents)
    check_count(name, count, len(values))
    data = values if datatype == "BYTES" else check_values(name, datatype, values)
    return Tensor(name, datatype, shape, data, parameters)


def _contents(name: str, datatype: str, contents: dict[str, list[object]]) -> list[object]:
    """The list of contents that belongs to the datatype. All others must be empty."""
    right = _CONTENTS.get(datatype)
    if right is None:
        raise input_error(name, f"of datatype {datatype} must come in raw_input_contents")
    for other, values in contents.items():
        if other != right and values:
            raise input_error(name, f"has {other}; datatype {datatype} takes {right}")
    return contents.get(right, [])


def _flag(value: Scalar) -> bool:
    if not isinstance(value, bool):
        name = "binary_data_output"
        raise InvalidRequest(f"{name} must be true or false", param=name)
    return value


def _outputs(
    read: Sequence[tuple[str, dict[str, Scalar | None]]],
) -> tuple[tuple[str, ...], dict[str, bool]]:
    names: list[str] = []
    binary: dict[str, bool] = {}
    for name, parameters in read:
        shown = name[:MAX_NAME]
        if name in names:
            raise InvalidRequest(f"output {shown!r} is asked for twice", param=shown)
        values = _values(parameters)
        for parameter in values:
            if parameter not in ("binary_data", "content_type"):
                text = f"output {shown!r} has an unknown parameter {parameter[:MAX_NAME]!r}"
                raise InvalidRequest(text, param=shown)
        names.append(name)
        raw_wanted = wants_raw(name, values)
        if raw_wanted is not None:
            binary[name] = raw_wanted
    return tuple(names), binary
