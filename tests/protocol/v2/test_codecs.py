"""Round trips of V2 tensors, requests and responses through JSON, the binary extension and
protobuf.
"""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.errors import InvalidRequest, TooLarge
from predictors.protocol.kserve_sdk import pb
from predictors.protocol.v2 import wire_json as v2_json
from predictors.protocol.v2 import wire_proto as v2_proto
from predictors.protocol.v2.grpc import encode_proto_response
from predictors.protocol.v2.tensors import (
    FORMATS,
    MAX_PARAMETER,
    MAX_PARAMETERS,
    check_values,
    count_elements,
    int_range,
    pack_tensor,
    unpack_tensor,
)
from predictors.protocol.v2.values import Tensor, V2Request, V2Response

FEW = settings(max_examples=40)
WIDTHS = {"FP16": 16, "FP32": 32, "FP64": 64}
FIELDS = {**v2_proto._CONTENTS}


def values_of(datatype: str) -> st.SearchStrategy[Any]:
    if datatype == "BYTES":
        return st.binary(max_size=20)
    if datatype == "BOOL":
        return st.booleans()
    if datatype in WIDTHS:
        width: Any = WIDTHS[datatype]
        return st.floats(allow_nan=False, allow_infinity=False, width=width)
    return st.integers(*int_range(datatype))


@st.composite
def tensors(draw: st.DrawFn, *, text: bool = False, without: tuple[str, ...] = ()) -> Tensor:
    """Tensors of any datatype with rank 1 or 2."""
    known = sorted({"BYTES", *FORMATS} - set(without))
    datatype = draw(st.sampled_from(known))
    sides = draw(st.lists(st.integers(0, 4), min_size=1, max_size=2))
    values = values_of(datatype)
    if text and datatype == "BYTES":
        values = st.text(max_size=20).map(str.encode)
    count = math.prod(sides)
    data = draw(st.lists(values, min_size=count, max_size=count))
    name = draw(st.text(min_size=1, max_size=10).filter(lambda x: x.isprintable()))
    return Tensor(name, datatype, tuple(sides), data, {}, text=text)


def batch(**more: Any) -> st.SearchStrategy[list[Tensor]]:
    return st.lists(tensors(**more), min_size=1, max_size=4)


def as_json(tensor: Tensor) -> dict[str, Any]:
    data = [x.decode() if isinstance(x, bytes) else x for x in tensor.data]
    fields = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    return fields | {"data": data}


def decoded(body: dict[str, Any], raw: bytes = b"") -> V2Request:
    head = json.dumps(body).encode()
    headers = {v2_json.HEADER: str(len(head))} if raw else {}
    return v2_json.decode_json_request(head + raw, headers, model="m")


def same(found: Tensor, sent: Tensor) -> None:
    assert (found.name, found.datatype, found.shape) == (sent.name, sent.datatype, sent.shape)
    assert list(found.data) == list(sent.data)


@FEW
@given(tensors())
def test_raw_bytes_round_trip(tensor: Tensor) -> None:
    count = math.prod(tensor.shape)
    assert list(unpack_tensor("x", tensor.datatype, count, pack_tensor(tensor))) == list(
        tensor.data
    )


@FEW
@given(tensors(), st.binary(min_size=1, max_size=3))
def test_raw_bytes_of_a_wrong_length_are_refused(tensor: Tensor, more: bytes) -> None:
    raw, count = pack_tensor(tensor), math.prod(tensor.shape)
    with pytest.raises(InvalidRequest):
        unpack_tensor("x", tensor.datatype, count, raw + more)
    if raw:
        with pytest.raises(InvalidRequest):
            unpack_tensor("x", tensor.datatype, count, raw[:-1])


@FEW
@given(batch(text=True))
def test_json_inputs_round_trip(sent: list[Tensor]) -> None:
    found = decoded({"inputs": [as_json(tensor) for tensor in sent]})
    for a, b in zip(found.inputs, sent, strict=True):
        same(a, b)
        assert a.text


@FEW
@given(batch())
def test_binary_inputs_round_trip(sent: list[Tensor]) -> None:
    raws = [pack_tensor(tensor) for tensor in sent]
    inputs = [
        {"name": t.name, "datatype": t.datatype, "shape": t.shape,
         "parameters": {"binary_data_size": len(raw)}}
        for t, raw in zip(sent, raws, strict=True)
    ]  # fmt: skip
    found = decoded({"inputs": inputs}, b"".join(raws))
    for a, b in zip(found.inputs, sent, strict=True):
        same(a, b)
        assert not a.text


@FEW
@given(batch())
def test_raw_protobuf_inputs_round_trip(sent: list[Tensor]) -> None:
    message = pb.ModelInferRequest(model_name="m")
    for tensor in sent:
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        message.raw_input_contents.append(pack_tensor(tensor))
    found = v2_proto.decode_proto_request(message.SerializeToString())
    for a, b in zip(found.inputs, sent, strict=True):
        same(a, b)


@FEW
@given(batch(without=("FP16",)))
def test_typed_protobuf_inputs_round_trip(sent: list[Tensor]) -> None:
    message = pb.ModelInferRequest(model_name="m")
    for tensor in sent:
        entry = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        getattr(entry.contents, FIELDS[tensor.datatype]).extend(tensor.data)
    found = v2_proto.decode_proto_request(message.SerializeToString())
    for a, b in zip(found.inputs, sent, strict=True):
        same(a, b)


@FEW
@given(batch(), st.data())
def test_responses_are_equal_in_every_wire_format(sent: list[Tensor], data: st.DataObject) -> None:
    named = [Tensor(f"o{i}", t.datatype, t.shape, t.data) for i, t in enumerate(sent)]
    parameters = {"steps": 4, "precision": "float32", "warm": True}
    response = V2Response("m", "r1", tuple(named), parameters, "1")
    binary = {t.name: data.draw(st.booleans()) for t in named}
    request = V2Request("m", "r1", (), binary=binary)
    body, length = v2_json.encode_json_response(response, request)
    head = json.loads(body if length is None else body[:length])
    raw = b"" if length is None else body[length:]
    assert head["parameters"] == parameters
    for fields, tensor in zip(head["outputs"], named, strict=True):
        values, raw = read_output(fields, raw, math.prod(tensor.shape))
        assert values == list(tensor.data)
    assert raw == b""
    message = encode_proto_response(response, V2Request("m", "r1", (), binary_default=True))
    said = {
        name: getattr(x, x.WhichOneof("parameter_choice")) for name, x in message.parameters.items()
    }
    assert said == parameters
    for tensor, packed in zip(named, message.raw_output_contents, strict=True):
        found = unpack_tensor(tensor.name, tensor.datatype, math.prod(tensor.shape), packed)
        assert list(found) == list(tensor.data)


def read_output(fields: dict[str, Any], raw: bytes, count: int) -> tuple[list[Any], bytes]:
    """Read one output as a client does."""
    parameters = fields.get("parameters", {})
    if "binary_data_size" in parameters:
        size = parameters["binary_data_size"]
        assert "data" not in fields
        return list(unpack_tensor("x", fields["datatype"], count, raw[:size])), raw[size:]
    if fields["datatype"] != "BYTES":
        return fields["data"], raw
    if parameters.get("encoding") == "base64":
        return [base64.b64decode(x) for x in fields["data"]], raw
    return [x.encode() for x in fields["data"]], raw


@FEW
@given(st.binary(max_size=80), st.integers(0, 80))
def test_arbitrary_bytes_raise_only_invalid_request(raw: bytes, length: int) -> None:
    for headers in ({}, {v2_json.HEADER: str(length)}):
        with pytest.raises(InvalidRequest):
            v2_json.decode_json_request(raw, headers, model="m")


@FEW
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda x: (
    st.lists(x, max_size=3)
    | st.dictionaries(st.sampled_from(sorted(v2_json._INPUT_FIELDS | {"inputs", "outputs"})), x)
), max_leaves=15))  # fmt: skip
def test_arbitrary_json_raises_only_invalid_request(value: Any) -> None:
    good = {"name": "a", "datatype": "INT64", "shape": [1], "data": [1]}
    bodies = [
        value,
        {"inputs": value},
        {"inputs": [value]},
        {"inputs": [good | {"data": value}]},
        {"inputs": [good | {"shape": value}]},
        {"inputs": [good], "outputs": value},
        {"inputs": [good], "parameters": value},
    ]
    for body in bodies:
        try:
            v2_json.decode_json_request(json.dumps(body).encode(), {}, model="m")
        except InvalidRequest as error:
            assert error.message  # noqa: PT017 -- some of these are in order


def test_a_file_is_base64_in_json_even_if_it_is_valid_utf_8() -> None:
    tensor = Tensor("image", "BYTES", (1,), [b"GIF89a"], {"content_type": "image/gif"})
    body, _ = v2_json.encode_json_response(V2Response("m", "", (tensor,)), V2Request("m", "", ()))
    output = json.loads(body)["outputs"][0]
    assert output["parameters"] == {"content_type": "image/gif", "encoding": "base64"}
    assert output["data"] == [base64.b64encode(b"GIF89a").decode()]


def test_the_json_length_header_may_cover_the_whole_body() -> None:
    body = json.dumps({"inputs": [as_json(Tensor("a", "BYTES", (1,), [b"x"]))]}).encode()
    found = v2_json.decode_json_request(body, {v2_json.HEADER: str(len(body))}, model="m")
    assert found.inputs[0].text


@pytest.mark.parametrize(
    ("shape", "count"), [([2, 3], 6), ([], 1), ([0, 2**62], 0), ([2**16], 2**16)]
)
def test_elements_of_a_shape_are_counted_without_overflow(shape: list[int], count: int) -> None:
    assert count_elements("x", shape) == (tuple(shape), count)


@pytest.mark.parametrize("shape", [[2**16 + 1], [2**62, 4], [2**63 - 1] * 8])
def test_a_shape_with_too_many_elements_is_refused(shape: list[int]) -> None:
    with pytest.raises(TooLarge):
        count_elements("x", shape)


@pytest.mark.parametrize("datatype", sorted(set(FORMATS) - {"BOOL", "FP16", "FP32", "FP64"}))
def test_integers_out_of_range_are_refused(datatype: str) -> None:
    low, high = int_range(datatype)
    assert check_values("x", datatype, [low, high]) == [low, high]
    for value in (low - 1, high + 1, True, 1.0, "1"):
        with pytest.raises(InvalidRequest, match="row 0: input 'x'"):
            check_values("x", datatype, [value])


@pytest.mark.parametrize("datatype", ["FP16", "FP32"])
def test_numbers_that_a_datatype_rounds_to_infinity_are_refused(datatype: str) -> None:
    limit = {"FP16": 65_520.0, "FP32": 2.0**128 - 2.0**103}[datatype]
    held = [math.nextafter(limit, 0), -math.nextafter(limit, 0), 0, 1e-300]
    found = check_values("x", datatype, held)
    assert found == held
    pack_tensor(Tensor("x", datatype, (4,), found))
    for value in (limit, -limit, 1e300, 10**400, math.nextafter(limit, math.inf)):
        with pytest.raises(InvalidRequest, match=f"row 0: input 'x' .*too large for {datatype}"):
            check_values("x", datatype, [value])


@pytest.mark.parametrize(
    "parameters",
    [{"system_prompt": "x" * (MAX_PARAMETER + 1)}, {str(i): 1 for i in range(MAX_PARAMETERS + 1)}],
    ids=["a long one", "many"],
)
def test_parameters_are_limited_in_json_and_protobuf(parameters: dict[str, Any]) -> None:
    tensor = {"name": "x", "datatype": "BYTES", "shape": [1], "data": ["a"]}
    with pytest.raises(TooLarge, match="parameter"):
        decoded({"inputs": [tensor], "parameters": parameters})
    with pytest.raises(TooLarge, match="parameter"):
        decoded({"inputs": [tensor | {"parameters": parameters}]})
    message = pb.ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"a")
    for name, value in parameters.items():
        kind = "string_param" if isinstance(value, str) else "int64_param"
        setattr(message.parameters[name], kind, value)
    with pytest.raises(TooLarge, match="parameter"):
        v2_proto.decode_proto_request(message.SerializeToString())
