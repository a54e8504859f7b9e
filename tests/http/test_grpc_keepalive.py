"""Pings of gRPC clients: an allowed rate never ends a connection, a higher one does."""

from __future__ import annotations

import grpc
import pytest

from predictors.protocol import server
from predictors.protocol.kserve_sdk import pb, pb_grpc
from tests.fakes import ScriptedEngine
from tests.http.echo import PATIENCE_S, echo, held, serving
from tests.http.http2 import MAX_CONCURRENT_STREAMS, connect

ALWAYS_ALLOWED, NEVER_ALLOWED = 0, 3_600_000
PINGS = 12
STRIKES = 3
INFER = "/inference.GRPCInferenceService/ModelInfer"


def infer() -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="echo")
    tensor = request.inputs.add(name="prompt", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"a")
    return request


def test_the_shortest_allowed_ping_interval_is_five_seconds() -> None:
    assert server.MIN_PING_INTERVAL_MS == 5_000


def test_an_idle_connection_may_ping_at_the_allowed_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MIN_PING_INTERVAL_MS", ALWAYS_ALLOWED)
    with serving(echo()) as running, connect(running.server.grpc_port) as connection:
        assert [connection.ping() for _ in range(PINGS)] == [True] * PINGS


def test_a_connection_with_a_long_request_may_ping_at_the_allowed_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "MIN_PING_INTERVAL_MS", ALWAYS_ALLOWED)
    engine = ScriptedEngine()
    with held(engine) as (running, model), connect(running.server.grpc_port) as connection:
        connection.call(INFER, infer().SerializeToString())
        model.wait_submitted()
        assert [connection.ping() for _ in range(PINGS)] == [True] * PINGS
        engine.open()
        assert pb.ModelInferResponse.FromString(connection.answer()).model_name == "echo"


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "in a long request"])
def test_pings_above_the_allowed_rate_end_a_connection(
    monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    monkeypatch.setattr(server, "MIN_PING_INTERVAL_MS", NEVER_ALLOWED)
    with (
        held(ScriptedEngine()) as (running, model),
        connect(running.server.grpc_port) as connection,
    ):
        if busy:
            connection.call(INFER, infer().SerializeToString())
            model.wait_submitted()
        answered = next(count for count in range(PINGS) if not connection.ping())
        # gRPC does not count the first one, and one more after the call's own frames
        assert STRIKES <= answered - 1 <= STRIKES + 1


def test_grpcs_client_gets_unavailable_when_it_pings_too_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "MIN_PING_INTERVAL_MS", NEVER_ALLOWED)
    options = [("grpc.keepalive_time_ms", 20), ("grpc.http2.max_pings_without_data", 0)]
    with (
        held(ScriptedEngine()) as (running, _),
        grpc.insecure_channel(running.grpc_target, options=options) as channel,
    ):
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(infer(), timeout=PATIENCE_S)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "ping" in caught.value.details()


def test_concurrent_calls_of_a_connection_are_limited() -> None:
    with serving(echo()) as running, connect(running.server.grpc_port) as connection:
        assert connection.settings[MAX_CONCURRENT_STREAMS] == server.MAX_GRPC_STREAMS
