"""Calls that end before their message is there: counted once, as cancelled, and inferences logged.

gRPC ends a call itself whose head or message is over its limit, and tells the server no more than
that the call has ended, as if its caller had left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from predictors import metrics
from predictors.protocol.grpc.open_calls import OpenCalls
from predictors.protocol.kserve_sdk import pb, pb_grpc
from tests.http.echo import PATIENCE_S, Running, echo, serving
from tests.http.http2 import CANCEL, RST_STREAM, Connection, connect
from tests.http.log_lines import logged
from tests.http.test_bad_input_grpc import good
from tests.http.test_grpc_arriving import INFER, LIVE, PART

Metadata = tuple[tuple[str, str], ...]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(echo()) as running:
        yield running


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Callable[[Connection, str, int], None]:
    """Begins a call of which a part of the message comes, and returns once the server has begun it:
    gRPC drops those that end before that."""
    begun, begin_call = threading.Semaphore(0), OpenCalls.begin

    def told(calls: OpenCalls, name: str, context: Any) -> Any:
        try:
            return begin_call(calls, name, context)
        finally:
            begun.release()

    def send(connection: Connection, path: str, number: int) -> None:
        connection.open(path, number)
        connection.part(PART, number)
        assert begun.acquire(timeout=PATIENCE_S)

    monkeypatch.setattr(OpenCalls, "begin", told)
    return send


def end(connection: Connection, number: int) -> None:
    connection.send(RST_STREAM, CANCEL.to_bytes(4), stream=number)


def counted(reason: str, operation: str = "infer") -> float:
    found = metrics.requests_total.labels("unknown", "v2_grpc", operation, reason)._value.get()
    return float(found)


def test_a_message_over_grpcs_limit_is_counted(server: Running) -> None:
    before = counted("cancelled")
    with logged() as lines, grpc.insecure_channel(server.grpc_target) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer(
                good(bytes(2**20 + 1)), metadata=(("x-request-id", "big"),), timeout=PATIENCE_S
            )
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        (line,) = lines.wait(1)
    assert (line["reason"], line["request_id"], line["model"]) == ("cancelled", "big", "unknown")
    assert counted("cancelled") == before + 1


def test_a_caller_who_leaves_within_a_message_is_counted(
    server: Running, begin: Callable[[Connection, str, int], None]
) -> None:
    before = counted("cancelled")
    with logged() as lines, connect(server.server.grpc_port) as connection:
        begin(connection, INFER, 1)
        end(connection, 1)
        (line,) = lines.wait(1)
    assert line["reason"] == "cancelled"
    assert counted("cancelled") == before + 1


def test_probes_that_end_early_are_not_counted_as_inferences(
    server: Running, begin: Callable[[Connection, str, int], None]
) -> None:
    before, others = counted("cancelled"), counted("cancelled", "other")
    with logged() as lines, connect(server.server.grpc_port) as connection:
        for number, path in ((1, LIVE), (3, INFER)):
            begin(connection, path, number)
            end(connection, number)
        assert len(lines.wait(1)) == 1
    assert counted("cancelled") == before + 1
    assert counted("cancelled", "other") == others + 1


HEAD = (("x", "a" * 20_000),)  # gRPC takes 16 KiB
REFUSED_BY_GRPC: dict[str, tuple[str, Any, Metadata, str]] = {
    "a head of ServerLive": ("ServerLive", pb.ServerLiveRequest(), HEAD, "other"),
    "a head of ModelInfer": ("ModelInfer", good(b""), HEAD, "infer"),
    "a message of ModelReady": ("ModelReady", pb.ModelReadyRequest(name="a" * 2**21), (), "other"),
}


@pytest.mark.parametrize("case", REFUSED_BY_GRPC.values(), ids=REFUSED_BY_GRPC)
def test_what_grpc_refuses_for_its_size_is_counted(case: tuple[str, Any, Metadata, str]) -> None:
    method, message, metadata, operation = case
    before = counted("cancelled", operation)
    with serving(echo()) as server, grpc.insecure_channel(server.grpc_target) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            getattr(stub, method)(message, metadata=metadata, timeout=PATIENCE_S)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        server.stop()  # all calls have ended then
    assert counted("cancelled", operation) == before + 1


@pytest.mark.parametrize("path", ["/inference.GRPCInferenceService/Nothing", "/a/b", "/"])
def test_a_call_of_no_method_is_counted_and_unimplemented(server: Running, path: str) -> None:
    before = counted("not_supported", "other")
    with grpc.insecure_channel(server.grpc_target) as channel:
        with pytest.raises(grpc.RpcError, match="there is no such method") as caught:
            channel.unary_unary(path)(b"x" * 100, timeout=PATIENCE_S)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert counted("not_supported", "other") == before + 1
