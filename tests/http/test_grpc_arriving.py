"""gRPC messages that never arrive as a whole: how many are waited for, and who is harmed."""

from __future__ import annotations

import asyncio
import logging
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from predictors.protocol.grpc import arriving, listening
from predictors.protocol.grpc.open_calls import OpenCalls
from predictors.protocol.kserve_sdk import pb
from tests.fakes import ScriptedEngine
from tests.http.arriving_places import Places
from tests.http.echo import PATIENCE_S, Asking, Running, echo, held, serving, small_settings
from tests.http.http2 import END_STREAM, HEADERS, Frame, connect
from tests.http.log_lines import logged

SERVICE = "/inference.GRPCInferenceService/"
INFER, LIVE, STREAM = SERVICE + "ModelInfer", SERVICE + "ServerLive", SERVICE + "ModelStreamInfer"
WATCH = "/grpc.health.v1.Health/Watch"
METHODS = {
    "ModelInfer": INFER,
    "ServerLive": LIVE,
    "Health/Check": "/grpc.health.v1.Health/Check",
    "Health/Watch": WATCH,
}
MOST = 4
PART = struct.pack(">BI", 0, 500_000) + b"x" * 100  # of a message that never ends
EMPTY = struct.pack(">BI", 0, 0)


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Places:
    """A message needs a place after 10 ms."""
    monkeypatch.setattr(arriving, "AT_ONCE_S", 0.01)
    monkeypatch.setattr(arriving, "AGAIN_S", 0.01)
    return Places(monkeypatch)


@pytest.fixture
def running(places: Places) -> Iterator[Running]:
    """A server with few places."""
    settings = small_settings(server={"max_arriving_messages": MOST})
    with serving(echo("echo", settings), settings=settings) as found:
        places.running = found
        yield found


def is_live(running: Running) -> bool:
    with connect(running.server.grpc_port) as other:
        other.call(LIVE, b"")
        return bool(pb.ServerLiveResponse.FromString(other.answer()).live)


def infer_message() -> bytes:
    request = pb.ModelInferRequest(model_name="echo")
    tensor = request.inputs.add(name="prompt", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"hello")
    raw: bytes = request.SerializeToString()
    return raw


def small(running: Running) -> bytes:
    """The prompt of a whole message of another caller, as it comes back."""
    with grpc.insecure_channel(running.grpc_target) as channel:
        raw = channel.unary_unary(INFER)(infer_message(), timeout=PATIENCE_S)
    return bytes(pb.ModelInferResponse.FromString(raw).raw_output_contents[0][4:])


@pytest.mark.parametrize("path", METHODS.values(), ids=METHODS)
def test_messages_that_never_end_are_so_many_and_harm_no_whole_one(
    running: Running, places: Places, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        for address in ("127.0.0.2", "127.0.0.3"):
            found = stack.enter_context(connect(running.server.grpc_port, address))
            for number in (1, 3):
                places.hold(found, path, number, PART)
        last = stack.enter_context(connect(running.server.grpc_port, "127.0.0.4"))
        last.open(path, 1)
        last.part(PART, 1)
        assert last.answer() == b""
        assert b"4 gRPC messages are arriving already, which is the limit" in last.trailers
        assert b"retry-after" in last.trailers
        assert len(places) == MOST
        monkeypatch.setattr(arriving, "AGAIN_S", PATIENCE_S)  # however busy the machine is
        assert is_live(running)
        assert small(running) == b"hello"
    places.wait(0)


def test_one_caller_has_half_of_the_places(running: Running, places: Places) -> None:
    with connect(running.server.grpc_port) as connection:
        for number in (1, 3):
            places.hold(connection, INFER, number, PART)
        connection.open(INFER, 5)
        connection.part(PART, 5)
        connection.answer(5)
        assert b"2 gRPC messages of this caller are arriving already" in connection.trailers
        with connect(running.server.grpc_port, "127.0.0.2") as other:
            places.hold(other, INFER, 1, PART)


def test_a_reset_call_gives_its_place_back_and_nothing_is_logged(
    running: Running, places: Places
) -> None:
    with logged(logging.WARNING) as lines, connect(running.server.grpc_port) as connection:
        for number in range(1, 40, 2):
            places.hold(connection, INFER, number, PART if number % 4 == 1 else b"")
            connection.reset(number)
            places.wait(0)
        for number in range(41, 400, 2):  # before their message was asked for, at any moment
            connection.open(INFER, number)
            connection.reset(number)
        connection.open(LIVE, 401)
        connection.part(EMPTY, 401, END_STREAM)
        connection.answer(401)
    assert lines.text == ""


def test_streams_that_send_nothing_give_way_to_messages(running: Running, places: Places) -> None:
    with connect(running.server.grpc_port) as idle, connect(running.server.grpc_port) as sender:
        for number in (1, 3):
            places.hold(idle, STREAM, number, b"")
        for number in (1, 3):
            sender.open(INFER, number)
            sender.part(PART, number)
            idle.answer(number)
            assert b"this one has waited longest" in idle.trailers
        places.wait(2)


def num_answers(channel: grpc.Channel) -> int:
    """Of a stream with one request, which ends once that is answered, as most clients' do. Raises
    `RpcError` if the server ends it otherwise."""
    is_answered, found = threading.Event(), 0

    def requests() -> Iterator[bytes]:
        yield infer_message()
        assert is_answered.wait(PATIENCE_S)

    try:
        for _ in channel.stream_stream(STREAM)(requests(), timeout=PATIENCE_S):
            found += 1
            is_answered.set()
    finally:
        is_answered.set()
    return found


def test_streams_whose_requests_are_in_progress_end_none_of_each_other(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving, "AT_ONCE_S", PATIENCE_S)  # their first messages may come late
    settings, engine = small_settings(server={"max_arriving_messages": MOST}), ScriptedEngine()
    with held(engine, settings) as (running, model), ThreadPoolExecutor(2 * MOST) as pool:
        places.running = running
        with grpc.insecure_channel(running.grpc_target) as channel:
            asking = [pool.submit(num_answers, channel) for _ in range(2 * MOST)]
            model.wait_submitted(2 * MOST)
            places.wait(MOST // 2)
            monkeypatch.setattr(arriving, "AT_ONCE_S", 0.01)
            places.end_at_once()
            with connect(running.server.grpc_port) as connection:  # nor does one give way
                connection.open(INFER, 1)
                connection.part(PART, 1)
                connection.answer(1)
                told = b"2 gRPC messages of this caller are arriving already"
                assert told in connection.trailers
            monkeypatch.setattr(arriving, "AT_ONCE_S", PATIENCE_S)  # their ends may come late, too
            engine.open()
            assert [each.result(PATIENCE_S) for each in asking] == [1] * (2 * MOST)
        places.wait(0)


def test_a_stream_without_a_place_reads_on_once_its_request_is_answered(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving, "BODY_TIMEOUT_S", 10 * PATIENCE_S)
    settings, engine = small_settings(server={"max_arriving_messages": 2}), ScriptedEngine()
    framed = struct.pack(">BI", 0, len(infer_message())) + infer_message()
    with (
        held(engine, settings) as (running, model),
        connect(running.server.grpc_port) as connection,
    ):
        places.running = running
        places.hold(connection, INFER, 1, PART)  # all that one caller may have
        monkeypatch.setattr(arriving, "AT_ONCE_S", PATIENCE_S)  # however busy the machine is
        connection.open(STREAM, 3)
        connection.part(framed, 3)
        model.wait_submitted()
        connection.part(framed, 3, END_STREAM)
        engine.open()
        assert connection.answer(3).count(b"hello") == 2
        assert b"grpc-status\x010" in connection.trailers


def test_a_stream_may_wait_longer_than_a_message(
    running: Running, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving, "BODY_TIMEOUT_S", 0.05)
    with connect(running.server.grpc_port) as connection:
        places.hold(connection, STREAM, 1, b"")
        connection.open(INFER, 3)  # its place may be free again before anybody looks
        connection.part(PART, 3)
        connection.answer(3)
        assert b"the message took longer than 0.05 s" in connection.trailers
        connection.part(EMPTY, 1, END_STREAM)
        assert b"there is no model" in connection.answer(1)
        assert b"grpc-status\x010" in connection.trailers


@pytest.mark.parametrize("path", METHODS.values(), ids=METHODS)
def test_a_call_without_a_message_is_an_invalid_argument(running: Running, path: str) -> None:
    with logged(logging.WARNING) as lines, connect(running.server.grpc_port) as connection:
        connection.open(path, 1)
        connection.part(b"", 1, END_STREAM)
        connection.answer()
        assert b"the call has no message" in connection.trailers
    assert lines.text == ""


@pytest.mark.parametrize("path", METHODS.values(), ids=METHODS)
def test_a_call_with_a_second_message_is_an_invalid_argument(running: Running, path: str) -> None:
    with logged(logging.WARNING) as lines, connect(running.server.grpc_port) as connection:
        connection.open(path, 1)
        connection.part(EMPTY, 1)
        connection.part(EMPTY, 1, END_STREAM)
        connection.answer()
        assert b"the call has more than one message; this method takes one" in connection.trailers
    assert lines.text == ""


def test_a_call_that_does_not_end_behind_its_message_has_a_minute(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could send another one."""
    monkeypatch.setattr(arriving, "BODY_TIMEOUT_S", 0.05)
    with connect(running.server.grpc_port) as connection:
        connection.open(LIVE, 1)
        connection.part(EMPTY, 1)
        connection.answer(1)
        assert b"the message took longer than 0.05 s" in connection.trailers


def test_what_still_arrives_at_a_shutdown_is_refused_and_may_be_sent_again(
    running: Running, places: Places
) -> None:
    with connect(running.server.grpc_port) as connection:
        places.hold(connection, INFER, 1, PART)
        places.hold(connection, STREAM, 3, b"")
        running.server.stop()
        for number in (1, 3):
            connection.answer(number)
            assert b"the server is shutting down; ask another replica" in connection.trailers
            assert b"retry-after" in connection.trailers
    assert running.join() == 0


def test_what_begins_to_arrive_during_a_drain_is_refused_at_once(places: Places) -> None:
    settings, engine = small_settings(), ScriptedEngine()
    with held(engine, settings) as (running, model), Asking(running) as asking:
        places.running = running
        accepted = asking.post("accepted")
        model.wait_submitted()
        running.server.stop()
        until_draining(running)
        with connect(running.server.grpc_port) as connection:
            for number, path in ((1, INFER), (3, STREAM), (5, LIVE)):
                connection.open(path, number)
                connection.part(PART if path == INFER else b"", number)
                connection.answer(number)
                assert b"the server is shutting down; ask another replica" in connection.trailers
        assert len(places) == 0
        engine.open()
        assert accepted.result(PATIENCE_S).status_code == 200
        assert running.join() == 0


def until_draining(running: Running) -> None:
    loop = running.server._loop
    assert loop is not None
    waiting = running.server._draining.wait()
    asyncio.run_coroutine_threadsafe(waiting, loop).result(PATIENCE_S)


def test_calls_beyond_the_limit_are_refused_and_probes_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listening, "MOST_CALLS", 3)
    heads: list[Frame] = []
    watched = health_pb2.HealthCheckRequest().SerializeToString()
    end, ends = OpenCalls._end, threading.Semaphore(0)

    def told(calls: OpenCalls, context: Any) -> None:
        end(calls, context)
        ends.release()

    def wait_ended(count: int) -> None:
        """Wait until so many more calls are not counted any more."""
        for _ in range(count):
            assert ends.acquire(timeout=PATIENCE_S)

    monkeypatch.setattr(OpenCalls, "_end", told)
    with serving(echo()) as running, connect(running.server.grpc_port) as connection:
        for number in (1, 3, 5):
            connection.open(WATCH, number)
            connection.part(EMPTY + watched, number, END_STREAM)
        while {frame.stream for frame in heads} != {1, 3, 5}:  # they have begun
            heads.append(connection.receive())
            heads = [frame for frame in heads if frame.kind == HEADERS]
        for path in (WATCH, INFER, STREAM):
            with connect(running.server.grpc_port) as other:
                other.call(path, b"")
                other.answer()
                assert b"3 gRPC calls are in progress already, which is the limit" in other.trailers
        assert is_live(running)
        wait_ended(4)
        for number in (1, 3, 5):
            connection.reset(number)
            wait_ended(1)
            assert small(running) == b"hello"
            wait_ended(1)
