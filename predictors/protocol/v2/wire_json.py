"""V2 requests and responses as JSON, with or without the binary extension.

The binary extension appends raw tensors to the JSON; `Inference-Header-Content-Length` is the
length of the JSON. Field names and meanings are the Open Inference Protocol's. An unknown field is
refused by name, never ignored.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import orjson

from predictors.errors import InvalidRequest
from predictors.protocol.http.bodies import parse_json
from predictors.protocol.v2.content_types import check_request, wants_raw
from predictors.protocol.v2.tensors import (
    MAX_NAME,
    ElementCount,
    check_count,
    check_datatype,
    check_parameters,
    check_values,
    count_elements,
    input_error,
    pack_tensor,
    unpack_tensor,
)
from predictors.protocol.v2.values import VERSION, Scalar, Tensor, V2Request, V2Response, as_files

HEADER = "inference-header-content-length"
MAX_TENSORS = 64
MAX_ID = 1024

_REQUEST_FIELDS = frozenset(
    {"id", "parameters", "inputs", "outputs", "model_name", "model_version"}
)
_INPUT_FIELDS = frozenset({"name", "shape", "datatype", "parameters", "data"})
INPUT_PARAMETERS = frozenset({"binary_data_size", "content_type", "encoding"})
_OUTPUT_FIELDS = frozenset({"name", "parameters"})
OUTPUT_PARAMETERS = frozenset({"binary_data", "content_type"})


def decode_json_request(
    raw: bytes,
    headers: Mapping[str, str],
    model: str,
    version: str = "",
    files: Collection[str] = (),
    other_name: str = "",
) -> V2Request:
    """Decode a request body. Raises `InvalidRequest` or `TooLarge`.

    `headers` may contain the binary extension's header. `files` are the names of inputs that hold
    files, which are base64 in JSON. `other_name` of the model may stand in the body, too.
    """
    length = header_length(headers, len(raw))
    body = parse_json(raw if length == len(raw) else raw[:length])
    _check_fields(body, _REQUEST_FIELDS, "the body")
    _check_same("model_name", body, (model, other_name))
    _check_same("model_version", body, (VERSION,))
    parameters = read_parameters(body.get("parameters"), "parameters")
    if "content_type" in parameters:
        check_request(parameters)
    outputs, binary = _outputs(body.get("outputs"))
    return V2Request(
        model=model,
        id=_id(body.get("id")),
        inputs=_inputs(body.get("inputs"), raw, length, files),
        outputs=outputs,
        binary=binary,
        binary_default=_flag(parameters.pop("binary_data_output", False), "binary_data_output"),
        parameters=parameters,
        version=version,
    )


def header_length(headers: Mapping[str, str], total: int) -> int:
    text = headers.get(HEADER)
    if text is None:
        return total
    if not (text.isascii() and text.isdecimal() and len(text) <= 19) or int(text) > total:
        message = f"{HEADER} must be a whole number of at most the body's {total} bytes"
        raise InvalidRequest(message, param=HEADER)
    return int(text)


def read_parameters(raw: object, where: str) -> dict[str, Scalar]:
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise InvalidRequest(f"{where} must be an object", param=where)
    for name, value in raw.items():
        if not isinstance(value, str | int | float):
            shown = name[:MAX_NAME]
            message = f"parameter {shown!r} must be a string, a number or true or false"
            raise InvalidRequest(message, param=shown)
    check_parameters(raw)
    return dict(raw)


def _inputs(raw: object, body: bytes, position: int, files: Collection[str]) -> tuple[Tensor, ...]:
    if not isinstance(raw, list) or not raw:
        raise InvalidRequest("inputs must be a list of at least one tensor", param="inputs")
    if len(raw) > MAX_TENSORS:
        raise InvalidRequest(f"there are {len(raw)} inputs; at most {MAX_TENSORS}", param="inputs")
    tensors, elements = [], ElementCount()
    for entry in raw:
        tensor, position = _input(entry, body, position, elements)
        if tensor.name in files:
            tensor = as_files(tensor)
        tensors.append(tensor)
    if position != len(body):
        raise InvalidRequest(f"{len(body) - position} bytes are left over behind the last input")
    return tuple(tensors)


def _input(entry: object, body: bytes, position: int, elements: ElementCount) -> tuple[Tensor, int]:
    """Decode one input. Returns it and the position of the next input's raw bytes."""
    fields = _check_fields(entry, _INPUT_FIELDS, "an input")
    name = _name(fields, "an input")
    datatype = check_datatype(name, fields.get("datatype"))
    sides = fields.get("shape")
    if not isinstance(sides, list):
        raise InvalidRequest(f"input {name[:MAX_NAME]!r} has no shape", param=name[:MAX_NAME])
    shape, count = count_elements(name, sides)
    elements.add(name, count)
    parameters = read_parameters(
        fields.get("parameters"), f"parameters of input {name[:MAX_NAME]!r}"
    )
    _check_fields(parameters, INPUT_PARAMETERS, f"parameters of input {name[:MAX_NAME]!r}")
    size = parameters.pop("binary_data_size", None)
    if size is None:
        values = _flatten(name, fields.get("data"), shape)
        check_count(name, count, len(values))
        data = check_values(name, datatype, values)
        return Tensor(name, datatype, shape, data, parameters, text=True), position
    if "data" in fields:
        raise input_error(name, "has both data and binary_data_size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(body) - position:
        raise input_error(name, f"has a binary_data_size that is not 0 to {len(body) - position}")
    data = unpack_tensor(name, datatype, count, body[position : position + size])
    return Tensor(name, datatype, shape, data, parameters), position + size


def _flatten(name: str, data: object, shape: tuple[int, ...]) -> list[object]:
    """Flatten `data`, which is flat or nested exactly as the shape says."""
    if not isinstance(data, list):
        raise input_error(name, "has no list of data")
    for depth, side in enumerate(shape[:-1]):
        if not (data and isinstance(data[0], list)):
            break
        if depth == 0 and len(data) != side:
            raise input_error(name, "has data that is nested otherwise than its shape says")
        below = shape[depth + 1]
        if not all(isinstance(part, list) and len(part) == below for part in data):
            raise input_error(name, "has data that is nested otherwise than its shape says")
        data = [value for part in data for value in part]
    return data


def _outputs(raw: object) -> tuple[tuple[str, ...], dict[str, bool]]:
    if raw is None:
        return (), {}
    if not isinstance(raw, list) or len(raw) > MAX_TENSORS:
        message = f"outputs must be a list of at most {MAX_TENSORS}"
        raise InvalidRequest(message, param="outputs")
    names: list[str] = []
    binary: dict[str, bool] = {}
    for entry in raw:
        fields = _check_fields(entry, _OUTPUT_FIELDS, "an output")
        name = _name(fields, "an output")
        if name in names:
            shown = name[:MAX_NAME]
            raise InvalidRequest(f"output {shown!r} is asked for twice", param=shown)
        names.append(name)
        where = f"parameters of output {name[:MAX_NAME]!r}"
        parameters = read_parameters(fields.get("parameters"), where)
        _check_fields(parameters, OUTPUT_PARAMETERS, where)
        raw_wanted = wants_raw(name, parameters)
        if raw_wanted is not None:
            binary[name] = raw_wanted
    return tuple(names), binary


def _check_fields(raw: object, known: Collection[str], where: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise InvalidRequest(f"{where} must be a JSON object")
    for name in raw:
        if name not in known:
            shown = name[:MAX_NAME]
            raise InvalidRequest(f"{where} has an unknown field {shown!r}", param=shown)
    return raw


def _name(fields: Mapping[str, Any], where: str) -> str:
    name = fields.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"{where} has no name", param="name")
    return name


def _id(raw: object) -> str:
    if raw is None:
        return ""
    if not isinstance(raw, str) or len(raw) > MAX_ID:
        raise InvalidRequest(f"id must be a string of at most {MAX_ID} characters", param="id")
    return raw


def _check_same(field: str, body: Mapping[str, object], known: Sequence[str]) -> None:
    """Clients of KServe say the model in the body, too: it must be the one of the path."""
    raw = body.get(field)
    if raw is None or raw == "" or raw in known:
        return
    shown = f"{raw[:MAX_NAME]!r}" if isinstance(raw, str) else "not a string"
    message = (
        f"{field} in the body is {shown}, and in the path {known[0][:MAX_NAME]!r}: leave it out"
    )
    raise InvalidRequest(message, param=field)


def _flag(raw: object, name: str) -> bool:
    if not isinstance(raw, bool):
        raise InvalidRequest(f"{name} must be true or false", param=name)
    return raw


# -- responses -------------------------------------------------------------------------------------
def encode_json_response(response: V2Response, request: V2Request) -> tuple[bytes, int | None]:
    """Encode a response body. Returns it and its JSON's length, None if no raw tensors follow."""
    outputs, raw = [], []
    for tensor in response.outputs:
        fields: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
        }
        parameters: dict[str, Scalar] = dict(tensor.parameters)
        if request.binary.get(tensor.name, request.binary_default):
            packed = pack_tensor(tensor)
            raw.append(packed)
            parameters["binary_data_size"] = len(packed)
        else:
            fields["data"] = _json_values(tensor, parameters)
        if parameters:
            fields["parameters"] = parameters
        outputs.append(fields)
    body: dict[str, Any] = {
        "model_name": response.model,
        "model_version": response.version,
        "id": response.id,
        "outputs": outputs,
    }
    if response.parameters:
        body["parameters"] = response.parameters
    head = orjson.dumps(body)
    return (b"".join((head, *raw)), len(head)) if raw else (head, None)


def is_file(tensor: Tensor) -> bool:
    return str(tensor.parameters.get("content_type", "")).startswith("image/")


def _json_values(tensor: Tensor, parameters: dict[str, Scalar]) -> list[object]:
    """Values for JSON. BYTES that are images or not UTF-8 become base64, noted in `parameters`."""
    if tensor.datatype != "BYTES":
        return list(tensor.data)
    rows: list[bytes] = list(tensor.data)  # type: ignore[arg-type]
    if not is_file(tensor):
        try:
            return [row.decode("utf-8") for row in rows]
        except UnicodeDecodeError:
            parameters.setdefault("content_type", "application/octet-stream")
    parameters["encoding"] = "base64"
    # base64 needs no escapes: the encoder copies it as it is
    return [orjson.Fragment(b'"%b"' % base64.b64encode(row)) for row in rows]
