"""The stop of a gRPC server: no call is cancelled, whatever its caller knows of the stop."""

from __future__ import annotations

import signal
import struct
import threading
from collections import Counter
from contextlib import suppress

import grpc
import pytest

from predictors.protocol.kserve_sdk import pb
from tests.fakes import ScriptedEngine
from tests.http.echo import PATIENCE_S, Running, echo, held, serving, small_settings
from tests.http.http2 import END_STREAM, HEADERS, SETTINGS, connect

INFER = "/inference.GRPCInferenceService/ModelInfer"
WATCH = "/grpc.health.v1.Health/Watch"
CALLERS = 12
HEADER_TABLE_SIZE = 1  # a setting of HTTP/2
UNAVAILABLE = b"14"


def message() -> bytes:
    request = pb.ModelInferRequest(model_name="echo")
    tensor = request.inputs.add(name="prompt", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"a")
    return request.SerializeToString()


def framed(raw: bytes) -> bytes:
    return struct.pack(">BI", 0, len(raw)) + raw


def test_a_caller_who_never_learns_of_the_stop_gets_no_cancelled_call() -> None:
    """It answers no ping, so that gRPC's own stop would go on accepting its calls, to cancel
    them."""
    statuses: list[bytes] = []
    with serving(echo()) as running, connect(running.server.grpc_port) as connection:
        connection.answers_pings = False
        connection.send(SETTINGS, struct.pack(">HI", HEADER_TABLE_SIZE, 0))  # trailers in words
        with suppress(ConnectionError, AssertionError):  # the server ends the connection
            for number in range(1, 100_000, 2):
                if number == 21:
                    running.server.stop()
                connection.open(INFER, number)
                connection.part(framed(message()), number, END_STREAM)
                connection.answer(number)
                status = connection.trailers.partition(b"grpc-status")[2]
                statuses.append(status[1 : 1 + status[0]])
        assert running.join() == 0
    assert statuses[:10] == [b"0"] * 10
    assert set(statuses) <= {b"0", UNAVAILABLE}


def ask_until_closed(running: Running, begun: threading.Barrier, found: Counter[str]) -> None:
    """Ask again and again until the port is closed, and count the outcomes."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(running.grpc_target, options=options) as channel:
        infer = channel.unary_unary(INFER)
        infer(message(), timeout=PATIENCE_S)
        begun.wait(PATIENCE_S)
        while "failed to connect" not in found:
            try:
                infer(message(), timeout=PATIENCE_S)
                found["answered"] += 1
            except grpc.RpcError as error:
                is_closed = "failed to connect" in error.details()
                found["failed to connect" if is_closed else error.code().name] += 1


@pytest.mark.parametrize("linger_s", [0.0, 0.2])
def test_callers_who_ask_again_and_again_are_answered_or_told_to_ask_another(
    linger_s: float,
) -> None:
    found: Counter[str] = Counter()
    begun = threading.Barrier(CALLERS + 1)
    settings = small_settings(server={"linger_s": linger_s})
    with serving(echo("echo", settings), settings=settings) as running:
        work = (running, begun, found)
        callers = [threading.Thread(target=ask_until_closed, args=work) for _ in range(CALLERS)]
        for each in callers:
            each.start()
        begun.wait(PATIENCE_S)
        running.server.stop()
        assert running.join() == 0
        for each in callers:
            each.join(PATIENCE_S)
    assert set(found) <= {"answered", "UNAVAILABLE", "failed to connect"}, found


def test_a_stop_waits_for_an_answer_that_is_still_being_read() -> None:
    engine = ScriptedEngine()
    with held(engine) as (running, model), connect(running.server.grpc_port) as connection:
        connection.call(INFER, message())
        model.wait_submitted()
        running.server.stop()
        engine.open()
        assert pb.ModelInferResponse.FromString(connection.answer()).model_name == "echo"
        assert running.join() == 0


def test_a_stop_waits_for_no_watch_and_logs_nothing() -> None:
    with serving(echo()) as running, connect(running.server.grpc_port) as connection:
        connection.open(WATCH, 1)
        connection.part(framed(b""), 1, END_STREAM)
        while connection.receive().kind != HEADERS:  # it has begun
            pass
        running.server.stop()
        assert connection.is_ended()
        assert running.join() == 0


def test_a_server_lingers_on_until_the_connections_from_before_were_sent_away() -> None:
    """Each of their calls is answered up to then, long after the linger."""
    settings = small_settings(server={"linger_s": 0.01, "grpc_connection_s": 3.0})
    with (
        serving(echo("echo", settings), settings=settings) as running,
        connect(running.server.grpc_port) as connection,
    ):
        loop = running.server._loop
        assert loop is not None
        loop.call_soon_threadsafe(running.server._signalled, signal.SIGTERM)
        number = 1
        while not connection.is_sent_away:
            connection.open(INFER, number)
            connection.part(framed(message()), number, END_STREAM)
            assert pb.ModelInferResponse.FromString(connection.answer(number)).model_name == "echo"
            number += 2
        assert number > 1
        assert connection.is_ended()
        assert running.join() == 0
