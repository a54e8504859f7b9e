"""gRPC callers that do not read their answer: their place is freed after a timeout, and their
connection is closed unless others are served on it.
"""

from __future__ import annotations

import logging
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from predictors import metrics
from predictors.protocol.grpc import unread_answers
from predictors.protocol.kserve_sdk import pb
from tests.fakes import EchoEngine, ScriptedEngine
from tests.http.echo import PATIENCE_S, Running, TaskPredictor, serving, small_settings
from tests.http.http2 import DATA, END_STREAM, Connection, connect
from tests.http.log_lines import logged
from tests.http.test_slow_readers import PICTURE, TIMEOUT_S, LargePicturePredictor

SERVICE = "/inference.GRPCInferenceService/"
INFER, STREAM = SERVICE + "ModelInfer", SERVICE + "ModelStreamInfer"
WINDOW = 65_535  # bytes of an answer that a caller takes without a word, by HTTP/2


@pytest.fixture
def at_any_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer has the timeout alone, whatever its size."""
    monkeypatch.setattr(unread_answers, "BYTES_PER_S", 2**40)


class Heard(logging.Handler):
    """Tells when something was logged that begins with these words."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self._words = words
        self.event = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(self._words):
            self.event.set()


@contextmanager
def hearing(words: str) -> Iterator[threading.Event]:
    heard, logger = Heard(words), logging.getLogger(unread_answers.__name__)
    level = logger.level
    logger.addHandler(heard)
    logger.setLevel(logging.INFO)
    try:
        yield heard.event
    finally:
        logger.removeHandler(heard)
        logger.setLevel(level)


@contextmanager
def painting(write_timeout_s: float = TIMEOUT_S) -> Iterator[tuple[Running, ScriptedEngine]]:
    """A server whose model "paint" answers with 20 MB at once; "echo" answers when it may."""
    settings = small_settings(server={"write_timeout_s": write_timeout_s})
    engine = ScriptedEngine()
    models = [
        LargePicturePredictor("paint", EchoEngine(), settings),
        TaskPredictor("echo", engine, settings),
    ]
    with serving(*models, settings=settings) as running:
        try:
            yield running, engine
        finally:
            engine.open()


def framed(model: str) -> bytes:
    request = pb.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name="prompt", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"x")
    raw = request.SerializeToString()
    return struct.pack(">BI", 0, len(raw)) + raw


def ask(connection: Connection, path: str, model: str, stream: int = 1) -> None:
    connection.open(path, stream)
    connection.part(framed(model), stream, END_STREAM)


def read_the_window(connection: Connection) -> None:
    """Read what the server may send. More it may only send when it is told so."""
    count = 0
    while count < WINDOW:
        frame = connection.receive()
        count += len(frame.payload) if frame.kind == DATA else 0


def num_failed() -> float:
    counter = metrics.requests_total.labels("paint", "v2_grpc", "infer", "internal")
    return float(counter._value.get())


@pytest.mark.usefixtures("at_any_speed")
@pytest.mark.parametrize("path", [INFER, STREAM])
def test_the_connection_of_a_caller_who_does_not_read_is_closed(path: str) -> None:
    with (
        painting() as (running, _),
        logged(logging.WARNING) as lines,
        connect(running.server.grpc_port) as connection,
    ):
        ask(connection, path, "paint")
        assert connection.is_ended()
        running.wait_idle()
    assert lines.text == ""


@pytest.mark.usefixtures("at_any_speed")
def test_the_request_of_a_stream_that_is_not_read_is_cancelled() -> None:
    with (
        logged(logging.INFO) as lines,
        painting() as (running, _),
        connect(running.server.grpc_port) as connection,
    ):
        ask(connection, STREAM, "paint")
        (line,) = lines.wait(1)
        running.wait_idle()
    assert line["reason"] == "cancelled"


@pytest.mark.usefixtures("at_any_speed")
def test_a_call_that_is_served_on_the_connection_is_answered_before_it_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unread_answers, "PATIENT_TIMEOUTS", 10_000)
    with (
        hearing("a gRPC caller did not read") as unread,
        painting() as (running, engine),
        connect(running.server.grpc_port) as connection,
    ):
        connection.allow(WINDOW)  # on all streams together
        ask(connection, INFER, "echo", 1)
        ask(connection, INFER, "paint", 3)
        assert unread.wait(PATIENCE_S)
        engine.open()
        assert pb.ModelInferResponse.FromString(connection.answer(1)).model_name == "echo"
        assert connection.is_ended()


@pytest.mark.usefixtures("at_any_speed")
def test_a_connection_is_closed_in_spite_of_others_once_it_had_patience_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unread_answers, "PATIENT_TIMEOUTS", 0)
    with painting() as (running, _), connect(running.server.grpc_port) as connection:
        connection.allow(WINDOW)
        ask(connection, INFER, "echo", 1)
        ask(connection, INFER, "paint", 3)
        assert connection.is_ended()


def test_a_caller_who_reads_gets_the_whole_answer() -> None:
    options = [("grpc.max_receive_message_length", -1)]
    with painting() as (running, _):
        channel: Any
        with grpc.insecure_channel(running.grpc_target, options=options) as channel:
            raw = channel.unary_unary(INFER)(framed("paint")[5:], timeout=PATIENCE_S)
    assert len(raw) > len(PICTURE)


def test_with_a_timeout_of_0_an_answer_waits() -> None:
    with painting(0.0) as (running, _), connect(running.server.grpc_port) as connection:
        ask(connection, INFER, "paint")
        read_the_window(connection)
        assert connection.ping()
        connection.allow(2**30)
        connection.allow(2**30, 1)
        assert len(connection.answer()) > len(PICTURE) - WINDOW


@pytest.mark.parametrize("path", [INFER, STREAM])
def test_a_caller_who_leaves_while_its_answer_is_sent_is_no_error(path: str) -> None:
    failed = num_failed()
    with painting() as (running, _), logged(logging.WARNING) as lines:
        with connect(running.server.grpc_port) as connection:
            ask(connection, path, "paint")
            read_the_window(connection)
            connection.reset(1)
            assert connection.ping()
        running.wait_idle()
    assert lines.text == ""
    assert num_failed() == failed
