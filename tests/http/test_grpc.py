"""V2 over gRPC: metadata, ids, the repository API, and tritonclient's double and unsigned
parameters.
"""

from __future__ import annotations

import struct
from typing import Any

import grpc
import pytest

from predictors import metrics
from predictors.protocol.kserve_sdk import pb, pb_grpc
from tests.http.echo import PATIENCE_S, PIXEL, Running, echo, serving, small_settings


def request(*prompts: bytes, raw: bool = False) -> Any:
    found = pb.ModelInferRequest(model_name="echo")
    entry = found.inputs.add(name="prompt", datatype="BYTES", shape=[len(prompts)])
    if raw:
        packed = (struct.pack("<I", len(x)) + x for x in prompts)
        found.raw_input_contents.append(b"".join(packed))
    else:
        entry.contents.bytes_contents.extend(prompts)
    return found


@pytest.fixture
def stub(running: Running) -> Any:
    """A stub of the inference service."""
    with grpc.insecure_channel(running.grpc_target) as channel:
        yield pb_grpc.GRPCInferenceServiceStub(channel)


@pytest.mark.parametrize("raw", [False, True])
def test_output_pictures_are_raw_for_any_input_encoding(stub: Any, raw: bool) -> None:
    answer = stub.ModelInfer(request(b"a", raw=raw), timeout=PATIENCE_S)
    assert [output.name for output in answer.outputs] == ["echo", "image", "seed", "scale"]
    assert answer.raw_output_contents[1] == struct.pack("<I", len(PIXEL)) + PIXEL
    assert answer.outputs[1].parameters["content_type"].string_param == "image/png"
    assert not answer.outputs[1].HasField("contents")


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        (b"\x21" + struct.pack("<d", 3.5), 3.5),  # double_param
        (b"\x28\x07", 7.0),  # uint64_param
        (b"\x10\x02", 2.0),  # int64_param
        (b"\x1a\x031.5", 1.5),  # string_param
    ],
    ids=["double", "uint64", "int64", "string"],
)
def test_a_number_may_come_in_any_parameter_type(stub: Any, sent: bytes, found: float) -> None:
    asked = request(b"a")
    asked.parameters["scale"].MergeFromString(sent)
    answer = stub.ModelInfer(asked, timeout=PATIENCE_S)
    assert struct.unpack("<d", answer.raw_output_contents[3]) == (found,)


def test_requested_outputs_are_returned_in_order(stub: Any) -> None:
    asked = request(b"a", b"b")
    asked.outputs.add(name="seed").parameters["binary_data"].bool_param = True
    asked.outputs.add(name="echo")
    asked.parameters["binary_data_output"].bool_param = True
    answer = stub.ModelInfer(asked, timeout=PATIENCE_S)
    assert [output.name for output in answer.outputs] == ["seed", "echo"]
    assert answer.raw_output_contents[0] == struct.pack("<2q", 0, 1)


def test_every_response_has_the_request_id_in_trailing_metadata(stub: Any) -> None:
    _, call = stub.ModelInfer.with_call(
        request(b"a"), metadata=(("x-request-id", "r9"),), timeout=PATIENCE_S
    )
    assert dict(call.trailing_metadata())["x-request-id"] == "r9"
    answer, call = stub.ModelInfer.with_call(request(b"a"), timeout=PATIENCE_S)
    assert dict(call.trailing_metadata())["x-request-id"] == answer.id
    _, call = stub.ModelReady.with_call(pb.ModelReadyRequest(name="echo"))
    assert len(dict(call.trailing_metadata())["x-request-id"]) == 32


def test_each_call_is_counted_once_under_its_outcome(stub: Any) -> None:
    def count(reason: str, model: str = "echo") -> float:
        return metrics.requests_total.labels(model, "v2_grpc", "infer", reason)._value.get()

    names = (("ok", "echo"), ("invalid_input", "echo"), ("not_found", "unknown"))
    before = [count(*name) for name in names]
    stub.ModelInfer(request(b"a"), timeout=PATIENCE_S)
    for wrong in (request(b"\xff"), pb.ModelInferRequest(model_name="nobody")):
        with pytest.raises(grpc.RpcError):
            stub.ModelInfer(wrong, timeout=PATIENCE_S)
    assert [count(*name) - was for name, was in zip(names, before, strict=True)] == [1, 1, 1]


def test_server_and_model_metadata(stub: Any) -> None:
    server = stub.ServerMetadata(pb.ServerMetadataRequest())
    model = stub.ModelMetadata(pb.ModelMetadataRequest(name="echo", version="1"))
    assert server.name == "vision-predictors"
    assert "binary_tensor_data" in server.extensions
    assert list(model.versions) == ["1"]
    first = model.inputs[0]
    assert (first.name, first.datatype, list(first.shape)) == ("prompt", "BYTES", [-1])


def test_with_the_repository_api_a_model_can_be_unloaded_and_loaded() -> None:
    settings = small_settings(server={"repository_api": True})
    with (
        serving(echo("echo", settings), settings=settings) as running,
        grpc.insecure_channel(running.grpc_target) as channel,
    ):
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="echo"))
        assert answer.isUnloaded
        assert not stub.ServerReady(pb.ServerReadyRequest()).ready
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request(b"a"), timeout=PATIENCE_S)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="echo")).isLoaded
        assert stub.ModelInfer(request(b"a"), timeout=PATIENCE_S).model_version == "1"


def test_grpc_can_be_disabled() -> None:
    settings = small_settings(server={"grpc_port": -1})
    with serving(echo("echo", settings), settings=settings) as running, running.client() as http:
        assert http.get("/v2/health/ready").status_code == 200
        assert running.server.grpc_port == -1
