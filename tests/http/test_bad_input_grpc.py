"""Invalid V2 requests over gRPC: the documented code, the same message as over REST without
internals, and the next valid call on the same channel succeeds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from predictors.protocol.kserve_sdk import pb, pb_grpc
from tests.http.echo import PATIENCE_S, Running
from tests.http.error_checks import check_text, timed

Code = grpc.StatusCode
Change = Callable[[Any], object]


@pytest.fixture(scope="module")
def channel(running: Running) -> Iterator[grpc.Channel]:
    """One channel for all cases."""
    with grpc.insecure_channel(running.grpc_target) as found:
        yield found


@pytest.fixture
def stub(channel: grpc.Channel) -> Any:
    """A stub of the inference service."""
    return pb_grpc.GRPCInferenceServiceStub(channel)


def good(prompt: bytes = b"hello") -> Any:
    """A valid request."""
    request = pb.ModelInferRequest(model_name="echo")
    tensor = request.inputs.add(name="prompt", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(prompt)
    return request


def rows(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


@dataclass(frozen=True)
class Case:
    """A change that makes a valid request invalid."""

    name: str
    change: Change
    words: str
    code: grpc.StatusCode = Code.INVALID_ARGUMENT


def prompt(
    case: str, words: str, code: grpc.StatusCode = Code.INVALID_ARGUMENT, **fields: Any
) -> Case:
    """Change fields of the one input."""
    shape = fields.pop("shape", None)

    def change(request: Any) -> None:
        if shape is not None:
            del request.inputs[0].shape[:]
            request.inputs[0].shape.extend(shape)
        set_field(**fields)(request.inputs[0])

    return Case(case, change, words, code)


def contents(name: str, datatype: str, words: str, count: int = 1, **lists: Any) -> Case:
    """Add a second input with these contents."""

    def change(request: Any) -> None:
        tensor = request.inputs.add(name="seed", datatype=datatype, shape=[count])
        for key, values in lists.items():
            getattr(tensor.contents, key).extend(values)

    return Case(name, change, words)


def raw(name: str, raws: list[bytes], words: str, **fields: Any) -> Case:
    """Send the one input raw."""

    def change(request: Any) -> None:
        request.inputs[0].ClearField("contents")
        request.raw_input_contents.extend(raws)
        for key, value in fields.items():
            setattr(request.inputs[0], key, value)

    return Case(name, change, words)


def parameter(name: str, values: dict[str, Any], words: str) -> Case:
    """Add parameters; bytes are a serialised `InferParameter`, as other clients may send it."""

    def change(request: Any) -> None:
        for key, value in values.items():
            entry = request.parameters[key]
            if isinstance(value, bytes):
                entry.MergeFromString(value)
            elif isinstance(value, bool):
                entry.bool_param = value
            elif isinstance(value, int):
                entry.int64_param = value
            else:
                entry.string_param = value

    return Case(f"parameter {name}", change, words)


def double(value: float) -> bytes:
    """A serialised `double_param` of Triton."""
    return b"\x21" + struct.pack("<d", value)


def outputs(name: str, wanted: list[str], words: str) -> Case:
    def change(request: Any) -> None:
        for each in wanted:
            request.outputs.add(name=each)

    return Case(f"output {name}", change, words)


def set_field(**fields: Any) -> Change:
    def change(request: Any) -> None:
        for key, value in fields.items():
            setattr(request, key, value)

    return change


def twice(request: Any) -> None:
    request.inputs.add().CopyFrom(request.inputs[0])


def add_parameter(target: str) -> Change:
    def change(request: Any) -> None:
        if target == "outputs":
            request.outputs.add(name="echo")
        getattr(request, target)[0].parameters["classification"].int64_param = 1

    return change


CASES = [
    Case("model unknown", set_field(model_name="nobody"), "no model 'nobody'", Code.NOT_FOUND),
    Case("model empty", set_field(model_name=""), "no model ''", Code.NOT_FOUND),
    Case("model a path", set_field(model_name="../etc"), "no model '../etc'", Code.NOT_FOUND),
    Case("version 2", set_field(model_version="2"), "no version '2'", Code.NOT_FOUND),
    Case("id of 2,000 characters", set_field(id="x" * 2000), "1024 characters"),
    Case("no inputs", lambda r: r.ClearField("inputs"), "at least one tensor"),
    Case("65 inputs", lambda r: [twice(r) for _ in range(64)], "64 inputs and outputs"),
    Case("input twice", twice, "input 'prompt' is given twice"),
    Case("input parameter", add_parameter("inputs"), "unknown parameter 'classification'"),
    Case("output parameter", add_parameter("outputs"), "unknown parameter 'classification'"),
    prompt("no name", "an input has no name", name=""),
    prompt("name unknown", "unknown input 'promt'", name="promt"),
    prompt("name of a megabyte", "unknown input 'xxx", name="x" * 900_000),
    prompt("datatype unknown", "datatype 'NOPE'; known are", datatype="NOPE"),
    prompt("datatype missing", "datatype ''", datatype=""),
    prompt("shape []", "has shape []", shape=[]),
    prompt("shape [-1]", "not a list of whole numbers from 0", shape=[-1]),
    prompt("shape [0]", "has 1 elements, but its shape means 0", shape=[0]),
    prompt("shape [2]", "has 1 elements, but its shape means 2", shape=[2]),
    prompt("shape [1, 1, 1]", "takes [n] or [n, 1]", shape=[1, 1, 1]),
    prompt("shape of 9 dimensions", "more than 8 dimensions", shape=[1] * 9),
    prompt("shape [2**62, 4]", "65536", shape=[2**62, 4], code=Code.RESOURCE_EXHAUSTED),
    prompt("text as INT64", "has bytes_contents; datatype INT64 takes int64", datatype="INT64"),
    prompt("text as FP16", "must come in raw_input_contents", datatype="FP16"),
    Case("no contents", lambda r: r.inputs[0].ClearField("contents"), "has 0 elements"),
    contents("INT64 in int_contents", "INT64", "takes int64_contents", int_contents=[1]),
    contents("two lists", "INT64", "has bytes_con", int64_contents=[1], bytes_contents=[b""]),
    contents("INT8 300", "INT8", "out of INT8's range", int_contents=[300]),
    contents("UINT8 256", "UINT8", "out of UINT8's range", uint_contents=[256]),
    contents("FP32 seed", "FP32", "datatype FP32; it takes INT64", fp32_contents=[1.0]),
    contents("rows disagree", "INT64", "prompt has 1, seed has 2", 2, int64_contents=[1, 2]),
    Case(
        "text that is no UTF-8", lambda r: r.CopyFrom(good(b"\xff")), "row 0: prompt is not UTF-8"
    ),
    Case("raw beside contents", lambda r: r.raw_input_contents.append(b""), "has contents beside"),
    raw("two raw for one input", [b"", b""], "1 inputs, but 2 raw_input_contents"),
    raw("raw of 3 bytes", [b"abc"], "left over after 0 elements"),
    raw("raw with a length too large", [b"\xff\xff\xff\x7fa"], "says it has 2147483647 bytes"),
    raw("raw of none", [b""], "has 0 elements, but its shape means 1"),
    raw("raw of two", [rows(b"a", b"b")], "left over after 1 elements"),
    raw("raw INT64 of 7 bytes", [b"1234567"], "has 7 raw bytes", datatype="INT64"),
    raw("raw BOOL 2", [b"\x02"], "neither 0 nor 1", datatype="BOOL"),
    raw("raw FP64 NaN", [struct.pack("<d", float("nan"))], "not finite", datatype="FP64"),
    parameter("unknown", {"stepz": 1}, "unknown parameter 'stepz'"),
    parameter("without a value", {"steps": b""}, "parameter 'steps' has no value that can be read"),
    parameter("of a future kind", {"steps": b"\x3a\x01a"}, "'steps' has no value that can be read"),
    parameter("whole 1.5", {"steps": double(1.5)}, "steps must be a whole number, not '1.5'"),
    parameter("whole 'x'", {"steps": "x"}, "steps must be a whole number"),
    parameter("whole true", {"steps": True}, "steps must be a whole number"),
    parameter("number NaN", {"scale": double(float("nan"))}, "scale must be a finite number"),
    parameter("number infinite", {"scale": double(float("inf"))}, "scale must be a finite number"),
    parameter("number 'inf'", {"scale": "inf"}, "scale must be a finite number"),
    parameter("text 7", {"format": 7}, "format must be a string"),
    parameter("timeout -1", {"timeout": -1}, "timeout must be a positive number"),
    parameter("timeout 'soon'", {"timeout": "soon"}, "timeout must be a positive number"),
    outputs("unknown", ["ecko"], "no output 'ecko'; echo has echo"),
    outputs("twice", ["echo", "echo"], "output 'echo' is asked for twice"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_invalid_request_gets_its_code_and_message(
    stub: Any, case: Case, record_property: Any
) -> None:
    request = good()
    case.change(request)
    with timed(record_property), pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request, timeout=PATIENCE_S)
    assert caught.value.code() == case.code
    check_text(caught.value.details(), case.words)
    assert "x-request-id" in dict(caught.value.trailing_metadata())
    answer = stub.ModelInfer(good(b"still there"), timeout=PATIENCE_S)
    assert answer.raw_output_contents[0] == rows(b"still there")


@pytest.mark.parametrize("value", ["-1", "0", "soon", "nan"])
def test_an_invalid_timeout_in_the_metadata_is_an_invalid_argument(stub: Any, value: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(good(), metadata=(("x-request-timeout-ms", value),), timeout=PATIENCE_S)
    assert caught.value.code() == Code.INVALID_ARGUMENT
    check_text(caught.value.details(), "x-request-timeout-ms must be a positive number")


def test_a_message_above_the_limit_is_refused_and_the_channel_lives(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(good(bytes(2**20 + 1)), timeout=PATIENCE_S)
    assert caught.value.code() == Code.RESOURCE_EXHAUSTED
    assert stub.ModelInfer(good(), timeout=PATIENCE_S).model_name == "echo"


def test_too_much_metadata_is_refused_and_the_server_lives(running: Running, stub: Any) -> None:
    flood = tuple((f"key-{i}", "x" * 1000) for i in range(100))
    with grpc.insecure_channel(running.grpc_target) as own, pytest.raises(grpc.RpcError):
        pb_grpc.GRPCInferenceServiceStub(own).ModelInfer(good(), metadata=flood, timeout=PATIENCE_S)
    assert stub.ModelInfer(good(), timeout=PATIENCE_S).model_name == "echo"


def test_malformed_bytes_are_refused_and_the_channel_lives(
    channel: grpc.Channel, stub: Any
) -> None:
    ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    with pytest.raises(grpc.RpcError) as caught:
        ask(b"\xff\xff\xff\xff", timeout=PATIENCE_S)
    assert caught.value.code() in {Code.INTERNAL, Code.INVALID_ARGUMENT, Code.UNKNOWN}
    assert "Traceback" not in caught.value.details()
    assert stub.ModelInfer(good(), timeout=PATIENCE_S).model_name == "echo"


@pytest.mark.parametrize("method", ["ModelConfig", "ModelStatistics", "RepositoryIndex", "X"])
def test_methods_that_only_triton_has_are_unimplemented(channel: grpc.Channel, method: str) -> None:
    ask = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
    with pytest.raises(grpc.RpcError) as caught:
        ask(b"", timeout=PATIENCE_S)
    assert caught.value.code() == Code.UNIMPLEMENTED


def test_loading_and_unloading_are_unimplemented_unless_allowed(stub: Any) -> None:
    for ask in (
        lambda: stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="echo")),
        lambda: stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="echo")),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            ask()
        assert caught.value.code() == Code.UNIMPLEMENTED
        check_text(caught.value.details(), "is off")
    assert stub.ModelReady(pb.ModelReadyRequest(name="echo")).ready


def test_decompression_stops_at_the_limit(stub: Any) -> None:
    request = good(bytes(2**20 + 1))  # 1 KB on the wire
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request, timeout=PATIENCE_S, compression=grpc.Compression.Gzip)
    assert caught.value.code() == Code.RESOURCE_EXHAUSTED
    small = stub.ModelInfer(
        good(b"x" * 1000), timeout=PATIENCE_S, compression=grpc.Compression.Gzip
    )
    assert small.raw_output_contents


def test_a_small_message_with_millions_of_fields_is_refused_while_it_is_counted(
    running: Running,
) -> None:
    many = {
        "empty inputs": b"\x2a\x00" * 400_000,
        "unknown fields": b"\x98\x06\x00" * 300_000,
        "parameters": b"\x22\x00" * 400_000,
    }
    with grpc.insecure_channel(running.grpc_target) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for name, fields in many.items():
            raw = b"\x0a\x04echo" + fields
            with pytest.raises(grpc.RpcError, match="more than 1024 fields") as caught:
                call(raw, timeout=PATIENCE_S, compression=grpc.Compression.Gzip)
            assert caught.value.code() == Code.RESOURCE_EXHAUSTED, name
