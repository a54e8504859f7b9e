"""gRPC reflection through grpcio-reflection's own client, and the protocol as a file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from predictors.errors import InvalidRequest
from predictors.protocol.grpc.health import HealthMethods
from predictors.protocol.grpc.methods import RawMessage
from predictors.protocol.grpc.open_calls import OpenCalls
from predictors.protocol.grpc.reading import MessageReader
from predictors.protocol.grpc.reflection import NEWER, OLDER, ReflectionMethod
from predictors.protocol.grpc.refused_calls import RefusedCalls
from predictors.protocol.registry import Registry
from predictors.protocol.v2.proto_file import proto_text
from tests.http.echo import PATIENCE_S, Running, echo, serving, small_settings

INFERENCE = "inference.GRPCInferenceService"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(echo()) as running:
        yield running


@pytest.fixture(scope="module")
def channel(server: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc_target) as found:
        yield found


def asked(channel: grpc.Channel, *requests: Any, package: str = OLDER) -> list[Any]:
    method = channel.stream_stream(
        f"/{package}.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    return list(method(iter(requests), timeout=PATIENCE_S))


def test_the_stock_client_finds_the_services_and_can_infer_with_what_it_found(
    channel: grpc.Channel,
) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    services = {INFERENCE, "grpc.health.v1.Health"}
    services |= {f"{each}.ServerReflection" for each in (OLDER, NEWER)}
    assert set(database.get_services()) == services
    pool = DescriptorPool(database)
    service = pool.FindServiceByName(INFERENCE)
    method = service.FindMethodByName("ModelInfer")
    request_class = GetMessageClass(method.input_type)
    answer_class = GetMessageClass(method.output_type)
    request = request_class(model_name="echo", raw_input_contents=[b"\1\0\0\0a"])
    request.inputs.add(name="prompt", datatype="BYTES", shape=[1])
    infer = channel.unary_unary(
        f"/{INFERENCE}/ModelInfer", request_class.SerializeToString, answer_class.FromString
    )
    answer = infer(request, timeout=PATIENCE_S)
    assert [output.name for output in answer.outputs] == ["echo", "image", "seed", "scale"]
    streamed = pool.FindMessageTypeByName("inference.ModelStreamInferResponse")
    assert [field.name for field in streamed.fields] == ["error_message", "infer_response"]


@pytest.mark.parametrize("package", [OLDER, NEWER])
def test_every_service_leads_to_a_file_of_its_own(channel: grpc.Channel, package: str) -> None:
    request = reflection_pb2.ServerReflectionRequest
    (listed,) = asked(channel, request(list_services=""), package=package)
    for service in listed.list_services_response.service:
        (by_symbol,) = asked(channel, request(file_containing_symbol=service.name), package=package)
        (file,) = by_symbol.file_descriptor_response.file_descriptor_proto
        pool = DescriptorPool()
        pool.AddSerializedFile(file)
        assert pool.FindServiceByName(service.name) is not None


def test_what_is_not_there_is_said_and_the_stream_goes_on(channel: grpc.Channel) -> None:
    request = reflection_pb2.ServerReflectionRequest
    answers = asked(
        channel,
        request(file_by_filename="../../etc/passwd"),
        request(file_containing_symbol="inference.Nothing"),
        request(all_extension_numbers_of_type="inference.Nothing"),
        request(file_containing_extension={"containing_type": "x", "extension_number": 1}),
        request(),
        request(all_extension_numbers_of_type="inference.ModelInferRequest"),
        request(file_containing_symbol="inference.ModelInferRequest.InferInputTensor.name"),
    )
    codes = [answer.error_response.error_code for answer in answers]
    assert codes == [5, 5, 5, 5, 3, 0, 0]
    assert answers[-1].file_descriptor_response.file_descriptor_proto


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"\xff\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
        (b"\x0a\x80\x80\x04" + b"a" * 2**16, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
    ids=["garbage", "large"],
)
def test_a_hostile_message_is_refused_plainly(
    channel: grpc.Channel, message: bytes, code: grpc.StatusCode
) -> None:
    method = channel.stream_stream(f"/{NEWER}.ServerReflection/ServerReflectionInfo")
    with pytest.raises(grpc.RpcError) as caught:
        list(method(iter([message]), timeout=PATIENCE_S))
    assert caught.value.code() is code
    assert "ServerReflectionRequest" in caught.value.details()


def test_the_setting_turns_it_off() -> None:
    settings = small_settings(server={"grpc_reflection": "off"})
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with (
        serving(echo(settings=settings), settings=settings) as running,
        grpc.insecure_channel(running.grpc_target) as channel,
    ):
        with pytest.raises(grpc.RpcError) as caught:
            asked(channel, request)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_protocol_can_be_downloaded(server: Running) -> None:
    with server.client() as http:
        answer = http.get("/proto")
    assert answer.text == proto_text()
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert 'filename="grpc_predict_v2.proto"' in answer.headers["content-disposition"]


class EndedCall(Exception):
    """The end of a call by its context."""


class Context:
    """The context of a call with one message, which keeps the exception in whose handling the call
    was ended."""

    def __init__(self, raw: bytes) -> None:
        self.handled: list[BaseException | None] = []
        self._messages = [RawMessage(raw)]

    async def read(self) -> object:
        return self._messages.pop() if self._messages else grpc.aio.EOF

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def set_trailing_metadata(self, pairs: object) -> None: ...

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def add_done_callback(self, callback: object) -> None: ...

    async def abort(self, *_: object) -> None:
        self.handled.append(sys.exc_info()[1])
        raise EndedCall


def reflected(reader: MessageReader, registry: Registry) -> Any:
    return reader.duplex("x", ReflectionMethod([]).server_reflection_info).stream_stream


def watched(reader: MessageReader, registry: Registry) -> Any:
    health = HealthMethods(registry, frozenset())
    return reader.streaming("Watch", health.watch).stream_stream


def checked(reader: MessageReader, registry: Registry) -> Any:
    health = HealthMethods(registry, frozenset())
    return reader.cheap("Check", health.check).stream_unary


@pytest.mark.parametrize("method", [reflected, watched, checked])
@pytest.mark.parametrize("raw", [b"x" * 100_000, b"\xff" * 10])
async def test_a_refused_message_is_not_kept_by_the_frame_that_grpc_keeps(
    method: Callable[[MessageReader, Registry], Any], raw: bytes
) -> None:
    context, registry = Context(raw), Registry([], small_settings())
    calls, refused = OpenCalls(1, 0.0), RefusedCalls(registry)
    reader = MessageReader(registry.arriving, registry.callers, calls, refused)
    with pytest.raises(EndedCall) as ended:
        await method(reader, registry)(None, context)
    assert context.handled == [None]
    kept = [value for frame in frames(ended.value) for value in frame.f_locals.values()]
    assert not [value for value in kept if isinstance(value, InvalidRequest) or value == raw]


def frames(error: BaseException) -> Iterator[FrameType]:
    """Those that the error's traceback keeps, from the method's outermost one."""
    trace = error.__traceback__
    while trace is not None:
        if "predictors" in trace.tb_frame.f_code.co_filename:
            yield trace.tb_frame
        trace = trace.tb_next
