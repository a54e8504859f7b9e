"""Pings of gRPC clients: an allowed rate never ends a connection, a higher one does."""

from __future__ import annotations

import contextlib
import socket
import threading

import grpc
import pytest

from predictors.protocol.grpc import connection_options
from predictors.protocol.kserve_sdk import pb, pb_grpc
from predictors.settings import ServerSettings
from tests.fakes import ScriptedEngine
from tests.http.echo import PATIENCE_S, echo, held, serving, small_settings
from tests.http.http2 import GOAWAY, MAX_CONCURRENT_STREAMS, connect

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
    assert connection_options.MIN_PING_INTERVAL_MS == 5_000


def test_an_idle_connection_may_ping_at_the_allowed_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_options, "MIN_PING_INTERVAL_MS", ALWAYS_ALLOWED)
    with serving(echo()) as running, connect(running.server.grpc_port) as connection:
        assert [connection.ping() for _ in range(PINGS)] == [True] * PINGS


def test_a_connection_with_a_long_request_may_ping_at_the_allowed_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_options, "MIN_PING_INTERVAL_MS", ALWAYS_ALLOWED)
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
    monkeypatch.setattr(connection_options, "MIN_PING_INTERVAL_MS", NEVER_ALLOWED)
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
    monkeypatch.setattr(connection_options, "MIN_PING_INTERVAL_MS", NEVER_ALLOWED)
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


PING, ACK = 6, 1  # HTTP/2's frame type and flag


class PingCounter:
    """A TCP relay to a gRPC server that counts the pings of its client; `wait` waits for them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._seen = threading.Condition()
        self.pings = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            server = socket.create_connection(("127.0.0.1", self._port), PATIENCE_S)
            self._sockets += [client, server]
            back = threading.Thread(target=self._copy, args=(server, client))
            self._threads.append(back)
            back.start()
            self._read_frames(client, server)

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        self._end()

    def _read_frames(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError), client.makefile("rb") as file:
            server.sendall(file.read(24))  # the connection's preface
            while head := file.read(9):
                server.sendall(head + file.read(int.from_bytes(head[:3], "big")))
                if head[3] == PING and not head[4] & ACK:
                    with self._seen:
                        self.pings += 1
                        self._seen.notify_all()
        self._end()

    def _end(self) -> None:
        # shut down, not closed: closing does not wake a thread that reads the same socket
        for each in list(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def wait(self, count: int) -> bool:
        with self._seen:
            return self._seen.wait_for(lambda: self.pings >= count, PATIENCE_S)

    def __enter__(self) -> PingCounter:
        return self

    def __exit__(self, *_: object) -> None:
        # gRPC may keep its connection after the channel is closed: the relay's threads wait for it
        self._end()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        for each in self._sockets:
            each.close()


def test_grpcs_client_may_keep_a_long_request_alive_by_pings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the option misspelt, gRPC's five minutes hold, and the third ping ends the call."""
    monkeypatch.setattr(connection_options, "MIN_PING_INTERVAL_MS", 1)
    options = [
        ("grpc.keepalive_time_ms", 50),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    engine = ScriptedEngine()
    with (
        held(engine) as (running, model),
        PingCounter(running.server.grpc_port) as relay,
        grpc.insecure_channel(relay.target, options=options) as channel,
    ):
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        asked = stub.ModelInfer.future(infer(), timeout=PATIENCE_S)
        model.wait_submitted()
        # each takes gRPC about a second; the server would end the call before this many
        assert relay.wait(STRIKES + 3), f"{relay.pings} pings; ended: {asked.done()}"
        assert not asked.done()
        engine.open()
        assert asked.result(PATIENCE_S).model_name == "echo"


def test_concurrent_calls_of_a_connection_are_limited() -> None:
    with serving(echo()) as running, connect(running.server.grpc_port) as connection:
        assert connection.settings[MAX_CONCURRENT_STREAMS] == connection_options.MAX_STREAMS


def test_two_hundred_calls_at_once_on_a_new_connection_are_all_answered() -> None:
    """gRPC refuses calls at its limit of streams: it leaves none of them waiting in the client."""
    with serving(echo()) as running, grpc.insecure_channel(running.grpc_target) as channel:
        live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        calls = [live.future(b"", timeout=PATIENCE_S) for _ in range(200)]
        answers = [pb.ServerLiveResponse.FromString(each.result()) for each in calls]
        assert all(answer.live for answer in answers)


def test_a_connection_is_sent_away_within_the_linger_and_its_calls_go_on() -> None:
    engine = ScriptedEngine()
    settings = small_settings(server={"linger_s": 0.25})
    with (
        held(engine, settings) as (running, model),
        connect(running.server.grpc_port) as connection,
    ):
        connection.call(INFER, infer().SerializeToString())
        model.wait_submitted()
        while connection.receive().kind != GOAWAY:
            pass
        engine.open()
        assert pb.ModelInferResponse.FromString(connection.answer()).model_name == "echo"


@pytest.mark.parametrize(
    ("linger_s", "connection_s", "age_ms"),
    [(0.0, 0.0, None), (0.0, 60.0, None), (5.0, 0.0, 4_000), (5.0, 60.0, 60_000)],
)
def test_the_age_of_a_connection_follows_the_linger_or_a_setting_of_its_own(
    linger_s: float, connection_s: float, age_ms: int | None
) -> None:
    own = ServerSettings(linger_s=linger_s, grpc_connection_s=connection_s)
    options = dict(connection_options.server_options(own))
    assert options.get("grpc.max_connection_age_ms") == age_ms
