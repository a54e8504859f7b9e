"""Inferences whose call ends before their message is there: counted and logged once, as cancelled.

gRPC ends a call itself whose message is over its limit, and tells the server no more than that the
call has ended, as if its caller had left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from predictors import metrics
from predictors.protocol.grpc.open_calls import OpenCalls
from predictors.protocol.kserve_sdk import pb_grpc
from tests.http.echo import PATIENCE_S, Running, echo, serving
from tests.http.http2 import CANCEL, RST_STREAM, Connection, connect
from tests.http.log_lines import logged
from tests.http.test_bad_input_grpc import good
from tests.http.test_grpc_arriving import INFER, LIVE, PART


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


def counted(reason: str) -> float:
    found = metrics.requests_total.labels("unknown", "v2_grpc", "infer", reason)._value.get()
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
    before = counted("cancelled")
    with logged() as lines, connect(server.server.grpc_port) as connection:
        for number, path in ((1, LIVE), (3, INFER)):
            begin(connection, path, number)
            end(connection, number)
        assert len(lines.wait(1)) == 1
    assert counted("cancelled") == before + 1
