"""gRPC methods called with malformed or oversized messages."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2

from predictors.protocol.grpc.methods import MAX_SMALL_BYTES
from predictors.protocol.kserve_sdk import pb
from tests.http.echo import PATIENCE_S, Running, echo, serving, small_settings
from tests.http.http2 import ODD_PATHS, connect
from tests.http.log_lines import logged

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
METHODS = [method for service in (SERVICE, HEALTH) for method in service.methods]
SMALL = [method for method in METHODS if method.name != "ModelInfer"]
GARBAGE = {
    "no message": b"\xff\xff\xff\xff",
    "a field that ends too early": b"\x0a\x7fshort",
    "field number 0": b"\x00\x00",
    "an unknown wire type": b"\x0f",
    "a group that never ends": b"\x0b" * 200,
    "text": b"hello, is this thing on?",
}
LIVE = f"/{SERVICE.full_name}/ServerLive"

Method = type(METHODS[0])


@pytest.fixture(scope="module")
def big() -> Iterator[Running]:
    """A server that accepts messages of 64 MiB."""
    settings = small_settings(server={"max_message_bytes": 64 * 2**20})
    with serving(echo("echo", settings), settings=settings) as running:
        yield running


@pytest.fixture(scope="module")
def channel(big: Running) -> Iterator[grpc.Channel]:
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(big.grpc_target, options=options) as found:
        yield found


def failure(channel: grpc.Channel, method: Method, raw: bytes) -> grpc.RpcError:
    """The error of a call with these bytes."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    ask = channel.unary_stream(path) if method.server_streaming else channel.unary_unary(path)
    with pytest.raises(grpc.RpcError) as caught:
        b"".join(ask(raw, timeout=PATIENCE_S))  # reads a whole stream
    return caught.value


def by_name(method: Method) -> str:
    return str(method.name)


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("method", METHODS, ids=by_name)
def test_malformed_bytes_are_an_invalid_argument_on_every_method(
    channel: grpc.Channel, method: Method, garbage: bytes
) -> None:
    try:
        method.input_type._concrete_class.FromString(garbage)
    except Exception:  # noqa: BLE001
        pass
    else:
        pytest.fail("this is a message")
    with logged(logging.WARNING) as lines:
        error = failure(channel, method, garbage)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == f"the message is not a valid {method.input_type.name}"
    trailing = dict(error.trailing_metadata())
    assert re.fullmatch("[0-9a-f]{32}", trailing["x-request-id"])
    assert lines.text == ""


@pytest.mark.parametrize("method", SMALL, ids=by_name)
def test_a_large_message_for_a_cheap_method_is_refused_unparsed(
    channel: grpc.Channel, method: Method
) -> None:
    fields = b"\x50\x01" * 10_000_000  # unknown fields; each would be an object in memory
    with logged(logging.WARNING) as lines:
        error = failure(channel, method, fields)
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    name = method.input_type.name
    assert error.details() == f"a {name} of 20000000 bytes; at most {MAX_SMALL_BYTES} are read"
    assert "x-request-id" in dict(error.trailing_metadata())
    assert lines.text == ""


@pytest.mark.parametrize("method", METHODS, ids=by_name)
def test_every_method_of_the_protocol_is_served(channel: grpc.Channel, method: Method) -> None:
    assert failure(channel, method, b"\xff").code() != grpc.StatusCode.UNIMPLEMENTED


def test_every_response_has_the_request_id(channel: grpc.Channel) -> None:
    given = (("x-request-id", "mine"),)
    for method in SMALL:
        if method.server_streaming or method.name.startswith("Repository"):
            continue
        raw = (
            pb.ModelReadyRequest(name="echo").SerializeToString() if "Model" in method.name else b""
        )
        path = f"/{method.containing_service.full_name}/{method.name}"
        _, call = channel.unary_unary(path).with_call(raw, timeout=PATIENCE_S, metadata=given)
        assert dict(call.trailing_metadata())["x-request-id"] == "mine"


@pytest.mark.parametrize("path", ODD_PATHS.values(), ids=ODD_PATHS)
def test_a_method_whose_name_is_no_text_ends_its_own_call_alone(big: Running, path: bytes) -> None:
    """grpcio from 1.84 to 1.85.3 ends the whole server, for anybody without a key."""
    port = big.server.grpc_port
    with connect(port) as odd:
        odd.call(path, b"")
        assert odd.answer() == b""
        assert b"grpc-status" in odd.trailers
    with connect(port) as plain:
        plain.call(LIVE, b"")
        assert pb.ServerLiveResponse.FromString(plain.answer()).live


def test_metadata_that_is_no_text_is_no_error_of_ours(big: Running) -> None:
    with logged(logging.WARNING) as lines, connect(big.server.grpc_port) as connection:
        connection.call(LIVE, b"", {"x-name": b"\xff\xfe", "x-request-id": b"\xff"})
        assert pb.ServerLiveResponse.FromString(connection.answer()).live
    assert lines.text == ""
