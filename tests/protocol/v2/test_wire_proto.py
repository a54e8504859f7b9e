"""`ModelInferRequest` decoded from bytes, compared with protobuf, and its limits."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.serving.hostile_cases import NAME, PROMPT, field, infer, varint
from predictors.errors import InvalidRequest, TooLarge
from predictors.protocol.grpc.protobuf_reader import WireReader, signed
from predictors.protocol.kserve_sdk import pb
from predictors.protocol.v2.tensors import MAX_ELEMENTS
from predictors.protocol.v2.wire_proto import decode_proto_request, id_of, model_of

SCALARS = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=8)
PARAMETERS = st.dictionaries(st.text(max_size=8), SCALARS, max_size=4)


def fill(target: Any, parameters: dict[str, Any]) -> None:
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(target[name], kind, value)


@settings(max_examples=60)
@given(
    st.text(max_size=10),
    st.text(max_size=10),
    st.text(max_size=10),
    PARAMETERS,
    st.lists(st.binary(max_size=5), min_size=1, max_size=4),
    st.lists(st.text(min_size=1, max_size=5), max_size=3, unique=True),
)
def test_messages_are_decoded_as_by_protobuf(
    name: str, version: str, identity: str, parameters: dict[str, Any], rows: list[bytes], outs: Any
) -> None:
    message = pb.ModelInferRequest(model_name=name, model_version=version, id=identity)
    fill(message.parameters, parameters)
    tensor = message.inputs.add(name="prompt", datatype="BYTES", shape=[len(rows)])
    fill(tensor.parameters, {"content_type": "text/plain"})
    tensor.contents.bytes_contents.extend(rows)
    for output in outs:
        message.outputs.add(name=output)
    raw = message.SerializeToString()
    found = decode_proto_request(raw)
    assert model_of(raw) == (name, version) == (found.model, found.version)
    assert found.id == identity
    parameters.pop("binary_data_output", None)
    assert found.parameters == parameters
    assert found.outputs == tuple(outs)
    assert list(found.inputs[0].data) == rows
    assert found.inputs[0].parameters == {"content_type": "text/plain"}


@settings(max_examples=60)
@given(st.binary(max_size=60))
def test_bytes_that_protobuf_refuses_are_refused(raw: bytes) -> None:
    try:
        decode_proto_request(raw)
        model_of(raw)
    except InvalidRequest as error:
        assert error.message  # noqa: PT017 -- most bytes are refused
        return
    pb.ModelInferRequest.FromString(raw)


def numbers(kind: int, values: bytes, datatype: bytes, count: int) -> bytes:
    """A request whose one input has `values` as field `kind` of its contents."""
    tensor = field(1, b"seed") + field(2, datatype) + b"\x18" + varint(count)
    return infer(tensor + field(5, values if kind == 0 else field(kind, values)))


def test_repeated_numbers_may_be_packed_or_not_or_both() -> None:
    packed = field(3, b"\x01\x02") + b"\x18\x03" + field(3, b"\x04")
    assert list(decode_proto_request(numbers(0, packed, b"INT64", 4)).inputs[0].data) == [
        1,
        2,
        3,
        4,
    ]
    minus = varint(2**64 - 5)
    assert list(decode_proto_request(numbers(3, minus, b"INT64", 1)).inputs[0].data) == [-5]
    assert list(decode_proto_request(numbers(2, minus, b"INT8", 1)).inputs[0].data) == [-5]
    floats = struct.pack("<2f", 1.5, -2.0)
    assert list(decode_proto_request(numbers(6, floats, b"FP32", 2)).inputs[0].data) == [1.5, -2.0]
    one_by_one = b"".join(b"\x35" + struct.pack("<f", x) for x in (1.5, -2.0))
    assert list(decode_proto_request(numbers(0, one_by_one, b"FP32", 2)).inputs[0].data) == [
        1.5,
        -2.0,
    ]
    assert list(decode_proto_request(numbers(1, b"\x01\x00", b"BOOL", 2)).inputs[0].data) == [
        True,
        False,
    ]


def test_repeated_contents_are_merged_and_the_last_singular_field_counts() -> None:
    tensor = PROMPT + field(3, b"\x02") + field(5, field(8, b"a")) + field(5, field(8, b"b"))
    found = decode_proto_request(field(1, b"first") + infer(tensor))
    assert list(found.inputs[0].data) == [b"a", b"b"]
    assert found.model == "qwen-vl"


def test_parameters_of_tritons_types_are_accepted() -> None:
    double = field(1, b"scale") + field(2, b"\x21" + struct.pack("<d", 2.5))
    large = field(1, b"seed") + field(2, b"\x28" + varint(2**63 + 1))
    raw = field(4, double) + field(4, large) + infer(PROMPT + field(3, b"\x01"), b"\0\0\0\0")
    assert decode_proto_request(raw).parameters == {"scale": 2.5, "seed": 2**63 + 1}


def test_unknown_fields_are_skipped() -> None:
    unknown = b"\x98\x06\x01" + field(99, b"x") + b"\x9d\x06\0\0\0\0" + b"\x99\x06" + bytes(8)
    found = decode_proto_request(
        unknown + infer(unknown + PROMPT + field(3, b"\x01"), b"\1\0\0\0x")
    )
    assert list(found.inputs[0].data) == [b"x"]


@pytest.mark.parametrize(
    "raw",
    [
        b"\x0a",
        b"\x0a\x05ab",
        b"\xff" * 11,
        b"\x00\x00",
        b"\x0b",
        b"\x0c",
        b"\x0e\x00",
        b"\x0a\x02\xff\xfe",
        field(5, b"\x0a\xff"),
        infer(PROMPT + field(3, b"\x80")),
        infer(PROMPT + field(5, field(6, b"123"))),
    ],
)
def test_malformed_messages_are_refused(raw: bytes) -> None:
    with pytest.raises(
        InvalidRequest, match=r"the message (is not a valid ModelInferRequest|has a text)"
    ):
        decode_proto_request(raw)


MANY = {
    "inputs": (NAME + b"\x2a\x00" * 65, InvalidRequest, "64 inputs"),
    "outputs": (NAME + b"\x32\x00" * 65, InvalidRequest, "64 inputs and outputs"),
    "raw contents": (NAME + b"\x3a\x00" * 65, InvalidRequest, "64 inputs and outputs"),
    "parameters": (
        b"".join(field(4, field(1, b"%d" % i)) for i in range(257)),
        TooLarge,
        "256 parameters",
    ),
    "unknown fields": (b"\x98\x06\x00" * (2 * MAX_ELEMENTS + 1), TooLarge, "131072 fields"),
    "unknown fields inside": (
        infer(b"\x98\x06\x00" * (2 * MAX_ELEMENTS + 1)),
        TooLarge,
        "131072 fields",
    ),
    "dimensions": (infer(PROMPT + field(3, b"\x01" * 65)), TooLarge, "64 elements"),
    "dimensions one by one": (infer(PROMPT + b"\x18\x01" * 65), InvalidRequest, "dimensions"),
    "empty elements": (
        infer(PROMPT + field(5, b"\x42\x00" * (MAX_ELEMENTS + 1))),
        TooLarge,
        "bytes_contents has more than 65536",
    ),
    "packed numbers": (
        infer(PROMPT + field(5, field(3, b"\x01" * (MAX_ELEMENTS + 1)))),
        TooLarge,
        "more than 65536 elements",
    ),
    "packed floats": (
        infer(PROMPT + field(5, field(6, bytes(4 * MAX_ELEMENTS + 4)))),
        TooLarge,
        "more than 65536 elements",
    ),
    "elements of all inputs together": (
        NAME + field(5, field(1, b"a") + field(2, b"BYTES") + field(3, varint(40_000))) +
        field(5, field(1, b"b") + field(2, b"BYTES") + field(3, varint(40_000))) +
        field(7, bytes(160_000)) * 2,
        TooLarge,
        "more than 65536 elements",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MANY)
def test_too_many_fields_are_refused_before_they_are_built(name: str) -> None:
    raw, kind, words = MANY[name]
    with pytest.raises(kind, match=words):
        decode_proto_request(raw)


def test_the_model_is_read_from_the_outermost_fields() -> None:
    assert model_of(infer(b"\x98\x06\x00" * 1_000_000)) == ("qwen-vl", "")
    with pytest.raises(TooLarge, match="1024 fields"):
        model_of(b"\x2a\x00" * 1025)


@given(st.integers(0, 2**64 - 1))
def test_varints_round_trip(value: int) -> None:
    raw = varint(value)
    assert WireReader(raw, 1).varint(0, len(raw)) == (value, len(raw))
    assert signed(value, 64) == (value if value < 2**63 else value - 2**64)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_model_name_of_megabytes_is_refused_by_its_length(number: int) -> None:
    raw = field(number, b"\xff" * 5000) + infer(PROMPT)  # not decoded
    with pytest.raises(InvalidRequest, match="more than 4096 bytes"):
        decode_proto_request(raw)


@given(st.text(max_size=10), st.binary(max_size=30))
def test_the_id_is_read_from_what_can_be_read(identity: str, tail: bytes) -> None:
    raw = pb.ModelInferRequest(model_name="m", id=identity).SerializeToString()
    assert id_of(raw) == identity
    assert isinstance(id_of(raw + tail), str)
    assert isinstance(id_of(tail), str)
    assert id_of(pb.ModelInferRequest(id="x" * 10_000).SerializeToString()) == ""
