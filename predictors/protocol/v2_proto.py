"""V2 requests and responses as protobuf messages. Knows no server and no model.

KServe's `InferParameter` has no double. `tritonclient` sends Triton's `double_param` (field 4) and
`uint64_param` (field 5), which KServe's classes keep as unknown fields: they are read from there.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.unknown_fields import UnknownFieldSet

from predictors.errors import InvalidRequest, TooLarge
from predictors.protocol.kserve_sdk import pb
from predictors.protocol.v2 import Scalar, Tensor, V2Request, V2Response
from predictors.protocol.v2_json import MAX_ID, MAX_TENSORS
from predictors.protocol.v2_tensors import (
    MAX_ELEMENTS,
    MAX_NAME,
    check_count,
    check_datatype,
    check_values,
    count_elements,
    pack,
    unpack,
)

DOUBLE_FIELD, UINT64_FIELD = 4, 5  # of Triton's InferParameter
_FIXED64, _VARINT = 1, 0  # protobuf wire types

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


def decode_request(message: Any) -> V2Request:
    """A `ModelInferRequest` as values; raises `InvalidRequest` that names what is wrong."""
    if not message.inputs:
        raise InvalidRequest("inputs must have at least one tensor", param="inputs")
    if len(message.inputs) > MAX_TENSORS or len(message.outputs) > MAX_TENSORS:
        raise InvalidRequest(f"there may be {MAX_TENSORS} inputs and outputs", param="inputs")
    if len(message.id) > MAX_ID:
        raise InvalidRequest(f"id may have {MAX_ID} characters", param="id")
    raws: Sequence[bytes] = message.raw_input_contents
    if raws and len(raws) != len(message.inputs):
        text = f"there are {len(message.inputs)} inputs, but {len(raws)} raw_input_contents"
        raise InvalidRequest(text, param="raw_input_contents")
    tensors = [_input(x, raws[i] if raws else None) for i, x in enumerate(message.inputs)]
    parameters = read_parameters(message.parameters)
    parameters.pop("binary_data_output", None)  # everything is raw here
    return V2Request(
        model=message.model_name,
        id=message.id,
        inputs=tuple(tensors),
        parameters=parameters,
        outputs=_outputs(message.outputs),
        version=message.model_version,
    )


def read_parameters(raw: Mapping[str, Any]) -> dict[str, Scalar]:
    """Plain scalars from a map of `InferParameter`; one without a readable value is refused."""
    return {name: _parameter(name, raw[name]) for name in raw}


def _parameter(name: str, value: Any) -> Scalar:
    choice = value.WhichOneof("parameter_choice")
    if choice is not None:
        found: Scalar = getattr(value, choice)
        return found
    for unknown in UnknownFieldSet(value):
        if unknown.field_number == DOUBLE_FIELD and unknown.wire_type == _FIXED64:
            number: float = struct.unpack("<d", struct.pack("<Q", unknown.data))[0]
            return number
        if unknown.field_number == UINT64_FIELD and unknown.wire_type == _VARINT:
            return int(unknown.data)
    shown = name[:MAX_NAME]
    raise InvalidRequest(f"parameter {shown!r} has no value that can be read", param=shown)


def _input(message: Any, raw: bytes | None) -> Tensor:
    name = message.name
    if not name:
        raise InvalidRequest("an input has no name", param="name")
    datatype = check_datatype(name, message.datatype)
    shape, count = count_elements(name, message.shape)
    parameters = read_parameters(message.parameters)
    for parameter in parameters:
        if parameter not in {"content_type", "encoding", "binary_data_size"}:
            shown = parameter[:MAX_NAME]
            raise _wrong(name, f"has an unknown parameter {shown!r}")
    if raw is not None:
        if message.HasField("contents"):
            raise _wrong(name, "has contents beside raw_input_contents")
        return Tensor(name, datatype, shape, unpack(name, datatype, count, raw), parameters)
    values = _contents(name, datatype, message.contents)
    check_count(name, count, len(values))
    data = list(values) if datatype == "BYTES" else check_values(name, datatype, list(values))
    return Tensor(name, datatype, shape, data, parameters)


def _contents(name: str, datatype: str, contents: Any) -> Sequence[object]:
    """The one list of the contents that belongs to the datatype; all others must be empty."""
    right = _CONTENTS.get(datatype)
    if right is None:
        raise _wrong(name, f"of datatype {datatype} must come in raw_input_contents")
    for field, _ in contents.ListFields():
        if field.name != right:
            raise _wrong(name, f"has {field.name}; datatype {datatype} takes {right}")
    values: Sequence[object] = getattr(contents, right)
    if len(values) > MAX_ELEMENTS:
        raise TooLarge(f"input {name[:MAX_NAME]!r} has more than {MAX_ELEMENTS} elements")
    return values


def _outputs(messages: Sequence[Any]) -> tuple[str, ...]:
    names: list[str] = []
    for message in messages:
        shown = message.name[:MAX_NAME]
        if message.name in names:
            raise InvalidRequest(f"output {shown!r} is asked for twice", param=shown)
        for parameter in read_parameters(message.parameters):
            if parameter != "binary_data":
                text = f"output {shown!r} has an unknown parameter {parameter[:MAX_NAME]!r}"
                raise InvalidRequest(text, param=shown)
        names.append(message.name)
    return tuple(names)


def _wrong(name: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"input {name[:MAX_NAME]!r} {problem}", param=name[:MAX_NAME])


# -- responses -------------------------------------------------------------------------------------
def encode_response(response: V2Response) -> Any:
    """A `ModelInferResponse`, all tensors raw: tritonclient with numpy 2 can't read BYTES from
    `contents`."""
    message = pb.ModelInferResponse(
        model_name=response.model, model_version=response.version, id=response.id
    )
    for tensor in response.outputs:
        output = message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        write_parameters(output.parameters, tensor.parameters)
        message.raw_output_contents.append(pack(tensor))
    write_parameters(message.parameters, response.parameters)
    return message


def write_parameters(target: Any, parameters: Mapping[str, Scalar]) -> None:
    """Fill a map of `InferParameter`: int64, bool and string are all there is."""
    for name, value in parameters.items():
        if isinstance(value, bool):
            target[name].bool_param = value
        elif isinstance(value, int):
            target[name].int64_param = value
        else:
            target[name].string_param = str(value)
