"""Inferences whose call ends before their message is there: counted and logged once, as cancelled.

gRPC ends a call itself whose message is over its limit, and tells the server no more than that the
call has ended, as if its caller had left.
"""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from predictors import metrics
from predictors.protocol.kserve_sdk import pb_grpc
from tests.http.echo import PATIENCE_S, Running, echo, serving
from tests.http.http2 import CANCEL, RST_STREAM, connect
from tests.http.log_lines import logged
from tests.http.test_bad_input_grpc import good
from tests.http.test_grpc_arriving import INFER, LIVE, PART


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(echo()) as running:
        yield running


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


def test_a_caller_who_leaves_within_a_message_is_counted(server: Running) -> None:
    before = counted("cancelled")
    with logged() as lines, connect(server.server.grpc_port) as connection:
        connection.open(INFER, 1)
        connection.part(PART, 1)
        assert connection.ping()  # the call has begun
        connection.send(RST_STREAM, CANCEL.to_bytes(4), stream=1)
        (line,) = lines.wait(1)
    assert line["reason"] == "cancelled"
    assert counted("cancelled") == before + 1


def test_probes_that_end_early_are_not_counted_as_inferences(server: Running) -> None:
    before = counted("cancelled")
    with logged() as lines, connect(server.server.grpc_port) as connection:
        connection.open(LIVE, 1)
        connection.part(PART, 1)
        connection.send(RST_STREAM, CANCEL.to_bytes(4), stream=1)
        connection.open(INFER, 3)
        connection.part(PART, 3)
        connection.send(RST_STREAM, CANCEL.to_bytes(4), stream=3)
        assert len(lines.wait(1)) == 1
    assert counted("cancelled") == before + 1
