"""Calls of all methods that are refused as such: counted, logged and paced as a refused request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from predictors import metrics
from predictors.observe.sampling import SampledLines
from predictors.protocol import outcomes, refusal_pace
from predictors.protocol.grpc import listening
from predictors.protocol.refusal_pace import DELAY_S, RefusalPace
from tests.http.echo import Running, echo, serving, small_settings
from tests.http.http2 import END_STREAM, HEADERS, connect
from tests.http.log_lines import Lines, logged
from tests.http.test_grpc_arriving import (
    EMPTY,
    INFER,
    MOST,
    PART,
    STREAM,
    WATCH,
    Places,
    places,
)

__all__ = ["places"]


METADATA = INFER.replace("ModelInfer", "ServerMetadata")
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"


def counted(reason: str, operation: str = "infer") -> float:
    found = metrics.requests_total.labels("unknown", "v2_grpc", operation, reason)._value.get()
    return float(found)


@contextmanager
def paced(running: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The waits before refusals, of which each caller gets one at once, and which take no time."""
    late: list[float] = []

    async def sleep(seconds: float) -> None:
        late.append(seconds)

    with monkeypatch.context() as patch:
        pace = RefusalPace(1.0, lambda: 100.0)
        patch.setattr(running.server.registry, "refusal_pace", pace)
        patch.setattr(refusal_pace, "asyncio", SimpleNamespace(sleep=sleep))
        yield late


@contextmanager
def few_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A server that takes no call more."""
    monkeypatch.setattr(listening, "MOST_CALLS", 2)
    watched = health_pb2.HealthCheckRequest().SerializeToString()
    with serving(echo()) as running, connect(running.server.grpc_port) as connection:
        for number in (1, 3):
            connection.open(WATCH, number)
            connection.part(EMPTY + watched, number, END_STREAM)
        begun = set[int]()
        while begun != {1, 3}:
            frame = connection.receive()
            begun |= {frame.stream} if frame.kind == HEADERS else set()
        yield running


@contextmanager
def few_places(monkeypatch: pytest.MonkeyPatch, places: Places) -> Iterator[Running]:
    """A server where the caller at 127.0.0.1 has all of its places, with messages."""
    settings = small_settings(server={"max_arriving_messages": MOST})
    with serving(echo("echo", settings), settings=settings) as running:
        places.running = running
        with connect(running.server.grpc_port) as connection:
            for number in range(1, MOST, 2):
                places.hold(connection, INFER, number, PART)
            yield running


def refused_ids(running: Running, path: str, part: bytes, count: int) -> list[bytes]:
    """The trailers of so many refused calls, one after the other on one connection."""
    found = []
    with connect(running.server.grpc_port) as connection:
        for number in range(1, 2 * count, 2):
            connection.open(path, number)
            connection.part(part, number)
            connection.answer(number)
            found.append(connection.trailers)
    return found


CAUSES: dict[str, tuple[Callable[..., Any], str]] = {
    "calls": (few_calls, "queue_full"),
    "messages of one caller": (few_places, "quota"),
}


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize(
    ("path", "operation"),
    [(INFER, "infer"), (STREAM, "infer"), (METADATA, "other"), (WATCH, "other"),
     (REFLECTION, "other")],
)  # fmt: skip
def test_a_refused_call_is_counted_and_paced_as_a_refused_request(
    monkeypatch: pytest.MonkeyPatch, places: Places, cause: str, path: str, operation: str
) -> None:
    monkeypatch.setattr(outcomes, "_sampled", SampledLines(outcomes.outcome_log))
    make, reason = CAUSES[cause]
    more = () if cause == "calls" else (places,)
    with (
        make(monkeypatch, *more) as running,
        paced(running, monkeypatch) as late,
        logged() as lines,
    ):
        before = counted(reason, operation)
        trailers = refused_ids(running, path, PART, 3)
        assert all(b"retry-after" in each and b"the limit" in each for each in trailers)
        assert counted(reason, operation) == before + 3
        assert late == [DELAY_S] * 2
        check_lines(lines, reason, trailers)
        access = [line for line in lines.of("access") if line["reason"] == reason]
        assert {line["method"] for line in access} == {path.rpartition("/")[2]}


def check_lines(lines: Lines, reason: str, trailers: list[bytes]) -> None:
    """Each refusal is one line, with the request id that its caller was told."""
    found = [line for line in lines.of("outcomes") if line["reason"] == reason]
    assert len(found) == len(trailers)
    assert {line["caller"] for line in found} == {"127.0.0.1"}
    for line, each in zip(found, trailers, strict=True):
        assert line["request_id"].encode() in each


def test_an_idle_stream_that_gives_way_is_counted_and_its_caller_paced(
    monkeypatch: pytest.MonkeyPatch, places: Places
) -> None:
    settings = small_settings(server={"max_arriving_messages": MOST})
    with (
        serving(echo("echo", settings), settings=settings) as running,
        paced(running, monkeypatch) as late,
        connect(running.server.grpc_port) as connection,
    ):
        places.running = running
        before = counted("queue_full")
        for number in (1, 3):
            places.hold(connection, STREAM, number, b"")
        for number in (5, 7):
            connection.open(INFER, number)
            connection.part(PART, number)
            connection.answer(number - 4)
            assert b"this one has waited longest" in connection.trailers
        assert counted("queue_full") == before + 2
        assert late == [DELAY_S]


def test_a_stream_that_ends_with_the_server_is_no_refused_request(
    monkeypatch: pytest.MonkeyPatch, places: Places
) -> None:
    with (
        serving(echo()) as running,
        paced(running, monkeypatch) as late,
        connect(running.server.grpc_port) as connection,
    ):
        places.running = running
        before = counted("draining")
        places.hold(connection, STREAM, 1, b"")
        running.server.stop()
        connection.answer(1)
        assert b"the server is shutting down; ask another replica" in connection.trailers
        assert counted("draining") == before
        assert late == []
