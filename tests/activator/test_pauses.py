"""Answers that pause, however long: an answer ends when the protocol says so."""

from __future__ import annotations

import asyncio
import queue
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from predictors.activator import server as activator_server
from predictors.protocol.grpc import arriving
from predictors.protocol.grpc.arriving import ArrivingMessages, Place, StreamMessages
from predictors.protocol.grpc.methods import bytes_field
from predictors.protocol.grpc.unread_answers import UnreadAnswers
from predictors.protocol.kserve_sdk import pb
from predictors.protocol.v2.stream_responses import FINAL, METHOD, PATH, RESPONSE
from tests.activator.scripted import (
    PATIENCE_S,
    Rig,
    Seen,
    activated,
    grpc_model,
    held_target,
)
from tests.http.http2 import connect

HOUR_S, HOURS = 3600.0, 24
PARTS = [b"data: one\n\n", b"data: two\n\n"]
PLACES = 2
PART = struct.pack(">BI", 0, 500_000) + bytes(100)  # of a message that never ends


class ScriptedTimeLoop(asyncio.SelectorEventLoop):
    """A loop whose time is set forward by `ahead_s` seconds, and with it all of its timers."""

    ahead_s = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_s


@pytest.fixture(autouse=True)
def scripted_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activator_server, "loop_factory", lambda: ScriptedTimeLoop)


def pass_a_day(rig: Rig) -> None:
    """Set the activator's time forward, hour by hour. Timers that are due then have run."""
    loop = rig.server._loop
    assert isinstance(loop, ScriptedTimeLoop)

    async def pass_hours() -> None:
        for _ in range(HOURS):
            loop.ahead_s += HOUR_S
            for _ in range(3):  # a timer may start another one
                await asyncio.sleep(1e-4)

    asyncio.run_coroutine_threadsafe(pass_hours(), loop).result(PATIENCE_S)


def test_the_time_of_these_tests_ends_what_has_a_limit_in_time() -> None:
    with activated() as rig:
        rig.scale.replicas = 1
        rig.model.start()
        with rig.connect() as idle:
            idle.sendall(b"POST /v2 HTTP/1.1\r\nhost: m\r\ncontent-length: 9\r\n\r\n")
            rig.model.wait_for(lambda: rig.model.seen)
            pass_a_day(rig)
            assert b" 504 " in idle.recv(4096).partition(b"\r\n")[0]  # `server.body_timeout_s`


# -- HTTP ------------------------------------------------------------------------------------------
WHOLE = b"".join(PARTS)
FRAMINGS = {
    "length": (b"content-length: %d\r\n" % len(WHOLE), PARTS, b""),
    "chunks": (
        b"transfer-encoding: chunked\r\n",
        [b"%x\r\n%s\r\n" % (len(part), part) for part in PARTS],
        b"0\r\n\r\n",
    ),
    "closed connection": (b"", PARTS, b""),
}


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("pauses_before", ["its head", "its second part", "its end"])
def test_an_answer_of_http_is_whole_however_long_it_pauses(
    framing: str, pauses_before: str
) -> None:
    field, (first, second), end = FRAMINGS[framing]
    head = b"HTTP/1.1 200 OK\r\n" + field + b"content-type: text/event-stream\r\n\r\n"
    pieces = {"its head": b"", "its second part": head + first, "its end": head + first + second}
    before = pieces[pauses_before]
    after = (head + first + second + end).removeprefix(before)
    go_on, paused = asyncio.Event(), threading.Event()

    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await seen.read_body()
        writer.write(before)
        await writer.drain()
        paused.set()
        await go_on.wait()
        writer.write(after)

    with activated() as rig, rig.client() as http:
        rig.scale.replicas, rig.model.answer = 1, answer
        rig.model.start()
        asked = rig.later(http.post, "/v2/models/m/infer_stream")
        assert paused.wait(PATIENCE_S)
        pass_a_day(rig)
        if (framing, pauses_before) == ("length", "its end"):
            asked.result(PATIENCE_S)  # nothing more belongs to it
        else:
            assert not asked.done()
        rig.model.loop.call_soon_threadsafe(go_on.set)
        reply = asked.result(PATIENCE_S)
        assert (reply.status_code, reply.content) == (200, WHOLE)
        assert rig.total("proxied") == 1


# -- gRPC ------------------------------------------------------------------------------------------
class Told:
    """Counts steps of the activator, for tests to wait for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waits_busy = threading.Semaphore(0)
        """Streams wait for their next message while an answer is not whole."""
        self.wrote = threading.Semaphore(0)
        self.answered = threading.Semaphore(0)
        wait, write, answered = ArrivingMessages._wait, UnreadAnswers.write, StreamMessages.answered

        async def waited(messages: ArrivingMessages, reading: Any, place: Place) -> None:
            if not place.gives_way:
                self.waits_busy.release()
            await wait(messages, reading, place)

        async def written(answers: UnreadAnswers, context: Any, raw: bytes) -> None:
            await write(answers, context, raw)
            self.wrote.release()

        def told(messages: StreamMessages) -> None:
            answered(messages)
            self.answered.release()

        monkeypatch.setattr(ArrivingMessages, "_wait", waited)
        monkeypatch.setattr(UnreadAnswers, "write", written)
        monkeypatch.setattr(StreamMessages, "answered", told)


def wait(semaphore: threading.Semaphore, count: int = 1) -> None:
    for _ in range(count):
        assert semaphore.acquire(timeout=PATIENCE_S)


def response(*, is_final: bool) -> bytes:
    inner = pb.ModelInferResponse(model_name="m")
    inner.parameters[FINAL].bool_param = is_final
    return bytes_field(RESPONSE, inner.SerializeToString())


class Upstream:
    """A gRPC server whose stream answers each request in two parts, the second when told."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.go_on = threading.Semaphore(0)

    def answer(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for _ in messages:
            yield response(is_final=False)
            wait(self.go_on)
            yield response(is_final=True)


class Stream:
    """A stream that its caller leaves open."""

    def __init__(self, channel: grpc.Channel, path: str) -> None:
        self._requests: queue.Queue[bytes | None] = queue.Queue()
        method = channel.stream_stream(path)
        self.call: Any = method(iter(self._requests.get, None), timeout=10 * PATIENCE_S)

    def ask(self) -> None:
        self._requests.put(b"request")

    def close(self) -> None:
        self._requests.put(None)


@contextmanager
def streams(service: str) -> Iterator[tuple[Rig, Upstream, list[Stream], str]]:
    """An activator before a started server, as many streams as it has places, and the path."""
    path, model = f"/{service}/{METHOD}", Upstream(service)
    with held_target() as target:
        handler = grpc.stream_stream_rpc_method_handler(model.answer)
        server = grpc_model(target, {METHOD: handler}, service)
        with activated(grpc_target=target, max_arriving_messages=PLACES) as rig:
            rig.model.start()
            with grpc.insecure_channel(f"127.0.0.1:{rig.server.grpc_port}") as channel:
                opened = [Stream(channel, path) for _ in range(PLACES)]
                try:
                    yield rig, model, opened, path
                finally:
                    for each in opened:
                        each.close()
                        each.call.cancel()
                    model.go_on.release(2 * PLACES)
                    server.stop(None).wait(PATIENCE_S)


def trailers_of_one_more(rig: Rig, path: str) -> bytes:
    """How a message ends that needs a place and finds none."""
    with connect(rig.server.grpc_port) as connection:
        connection.open(path, 1)
        connection.part(PART, 1)
        connection.answer(1)
        return connection.trailers


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """A message needs a place after 10 ms."""
    monkeypatch.setattr(arriving, "AT_ONCE_S", 0.01)
    monkeypatch.setattr(arriving, "AGAIN_S", 0.01)
    return Told(monkeypatch)


NO_PLACE = b"2 gRPC messages of this caller are arriving already"


def test_a_v2_stream_gives_way_only_between_its_answers(told: Told) -> None:
    service = PATH.split("/")[1]
    with streams(service) as (rig, model, opened, path):
        for each in opened:
            each.ask()
            assert next(each.call) == response(is_final=False)
        wait(told.waits_busy, PLACES)
        wait(told.wrote, PLACES)
        pass_a_day(rig)
        assert NO_PLACE in trailers_of_one_more(rig, path)
        model.go_on.release(PLACES)
        for each in opened:
            assert next(each.call) == response(is_final=True)
        wait(told.answered, PLACES)
        with connect(rig.server.grpc_port) as connection:  # now one of them ends
            connection.open(path, 1)
            connection.part(PART, 1)
            with pytest.raises(grpc.RpcError) as ended:
                next(opened[0].call)
            assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "this one has waited longest" in ended.value.details()


def test_an_answer_of_an_unknown_method_ends_with_its_call(told: Told) -> None:
    with streams("test.Model") as (rig, model, opened, path):
        for each in opened:
            each.ask()
            assert next(each.call) == response(is_final=False)
        model.go_on.release(PLACES)
        for each in opened:
            assert next(each.call) == response(is_final=True)
        wait(told.waits_busy, PLACES)
        wait(told.wrote, 2 * PLACES)
        pass_a_day(rig)
        assert NO_PLACE in trailers_of_one_more(rig, path)
        for each in opened:
            each.ask()
            assert next(each.call) == response(is_final=False)
            each.close()
            model.go_on.release()
            assert list(each.call) == [response(is_final=True)]
