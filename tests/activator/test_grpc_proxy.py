"""gRPC through the activator: any method, held while no server listens, messages one by one."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest

from predictors.activator import server as activator_server
from predictors.activator.grpc_proxy import GrpcProxy, GrpcUpstream
from predictors.activator.proxying import Proxying
from predictors.activator.waking import RETRY_SOON_S, WaitingRoom
from predictors.errors import Overloaded
from predictors.protocol.grpc import arriving
from predictors.settings import ActivatorSettings, Settings
from tests.activator.scripted import (
    BRISK,
    PATIENCE_S,
    Rig,
    activated,
    grpc_model,
    held_target,
    sample,
)
from tests.http.arriving_places import end_at_once
from tests.http.http2 import HEADERS, ODD_PATHS, connect


class Model:
    """A gRPC server that starts when it is told to."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.turn = threading.Semaphore(0)
        self.left = threading.Event()
        self.asked = threading.Semaphore(0)
        self.metadata: dict[str, Any] = {}
        self.server: grpc.Server | None = None

    def start(self) -> None:
        unary, many = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        both = grpc.stream_stream_rpc_method_handler
        self.server = grpc_model(
            self._target,
            {
                "Echo": unary(self.echo),
                "Count": many(self.count),
                "Answer": both(self.answer),
                "Refuse": unary(self.refuse),
                "Wait": unary(self.wait),
            },
        )

    def echo(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        self.metadata = dict(context.invocation_metadata())
        context.send_initial_metadata((("x-first", "1"),))
        context.set_trailing_metadata((("x-last", "2"), ("x-bin", b"\x00\xff")))
        return message

    def count(self, message: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        for number in range(int(message)):
            assert self.turn.acquire(timeout=PATIENCE_S)
            yield b"%d" % number

    def answer(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for message in messages:
            yield message.upper()

    def refuse(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata((("retry-after", "3"),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
        raise AssertionError

    def wait(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        context.add_callback(self.left.set)
        self.asked.release()
        self.left.wait(PATIENCE_S)
        return message


@contextmanager
def grpc_rig(places: int = 32, **bounds: Any) -> Iterator[tuple[Rig, Model, grpc.Channel]]:
    """An activator, a model that does not listen yet, and a channel to the activator. REST is the
    probe's way to see that the model is ready, so that both start together."""
    with held_target() as target:
        model = Model(target)
        own = {"grpc_target": target, "max_arriving_messages": places}
        with activated(replace(BRISK, **bounds), **own) as rig:

            def start() -> None:
                model.start()
                rig.model.start()

            rig.scale.on_wake = start
            address = f"127.0.0.1:{rig.server.grpc_port}"
            with grpc.insecure_channel(
                address, options=[("grpc.max_receive_message_length", -1)]
            ) as channel:
                try:
                    yield rig, model, channel
                finally:
                    if model.server is not None:
                        model.server.stop(None).wait(PATIENCE_S)


def unary(channel: grpc.Channel, method: str) -> Callable[..., Any]:
    return channel.unary_unary(f"/test.Model/{method}")


def test_a_unary_call_without_a_model_is_held_and_answered_with_its_metadata() -> None:
    with grpc_rig() as (rig, model, channel):
        echo = channel.unary_unary("/test.Model/Echo")
        metadata = (("x-own", "mine"), ("x-raw-bin", b"\x00\x01"), ("x-request-id", "call-1"))
        answer, call = echo.with_call(b"hello", metadata=metadata, timeout=PATIENCE_S)
        assert answer == b"hello"
        assert dict(call.initial_metadata())["x-first"] == "1"
        trailing = dict(call.trailing_metadata())
        assert (trailing["x-last"], trailing["x-bin"]) == ("2", b"\x00\xff")
        assert model.metadata["x-own"] == "mine"
        assert model.metadata["x-raw-bin"] == b"\x00\x01"
        assert model.metadata["x-request-id"] == "call-1"
        assert model.metadata["x-forwarded-for"] == "127.0.0.1"
        assert rig.scale.replicas == 1
        assert rig.total("proxied", "v2_grpc") == 1


def test_twenty_calls_at_once_wake_the_model_once_and_none_is_lost() -> None:
    with grpc_rig() as (rig, _, channel):
        start, rig.scale.on_wake = rig.scale.on_wake, lambda: None
        calls = [unary(channel, "Echo").future(b"%d" % n, timeout=PATIENCE_S) for n in range(20)]  # type: ignore[attr-defined]
        rig.scale.wait_held(20)
        rig.scale.wait_for(lambda: sample("wakes_total", rig.scale.name) == 1)  # counted
        start()
        assert [call.result() for call in calls] == [b"%d" % n for n in range(20)]
        assert sample("wakes_total", rig.scale.name) == 1


def test_messages_of_a_stream_arrive_one_by_one() -> None:
    with grpc_rig() as (_, model, channel):
        numbers = channel.unary_stream("/test.Model/Count")(b"3", timeout=PATIENCE_S)
        for number in range(3):
            model.turn.release()
            assert next(numbers) == b"%d" % number
        assert list(numbers) == []


def test_both_sides_of_a_call_may_stream() -> None:
    with grpc_rig() as (_, _, channel):
        told = threading.Event()

        def messages() -> Iterator[bytes]:
            yield b"one"
            assert told.wait(PATIENCE_S)
            yield b"two"

        answers = channel.stream_stream("/test.Model/Answer")(messages(), timeout=PATIENCE_S)
        assert next(answers) == b"ONE"
        told.set()
        assert list(answers) == [b"TWO"]


def test_the_models_own_status_and_trailing_metadata_arrive() -> None:
    with grpc_rig() as (_, _, channel):
        with pytest.raises(grpc.RpcError) as refused:
            unary(channel, "Refuse")(b"", timeout=PATIENCE_S)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.value.details() == "the queue is full"
        assert dict(refused.value.trailing_metadata())["retry-after"] == "3"
        with pytest.raises(grpc.RpcError) as unknown:
            unary(channel, "Nothing")(b"", timeout=PATIENCE_S)
        assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_call_more_than_may_wait_is_refused_with_a_time_to_come_again() -> None:
    with grpc_rig(max_held=1) as (rig, _, channel):
        start, rig.scale.on_wake = rig.scale.on_wake, lambda: None
        first = unary(channel, "Echo").future(b"first", timeout=PATIENCE_S)  # type: ignore[attr-defined]
        rig.scale.wait_held(1)
        with pytest.raises(grpc.RpcError) as refused:
            unary(channel, "Echo")(b"second", timeout=PATIENCE_S)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert int(dict(refused.value.trailing_metadata())["retry-after"]) >= 1
        start()
        assert first.result() == b"first"


def test_a_call_waits_no_longer_than_the_bound() -> None:
    with grpc_rig(max_wait_s=0.2) as (rig, _, channel):
        rig.scale.on_wake = lambda: None
        with pytest.raises(grpc.RpcError) as refused:
            unary(channel, "Echo")(b"", timeout=PATIENCE_S)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "did not start" in refused.value.details()
        assert "retry-after" in dict(refused.value.trailing_metadata())


def test_a_call_that_is_cancelled_while_it_is_held_gives_its_place_back() -> None:
    with grpc_rig() as (rig, _, channel):
        start, rig.scale.on_wake = rig.scale.on_wake, lambda: None
        stays = unary(channel, "Echo").future(b"stays", timeout=PATIENCE_S)  # type: ignore[attr-defined]
        rig.scale.wait_held(1)
        leaves = unary(channel, "Echo").future(b"leaves", timeout=PATIENCE_S)  # type: ignore[attr-defined]
        rig.scale.wait_held(2)
        leaves.cancel()
        rig.scale.wait_held(1)
        start()
        assert stays.result() == b"stays"
        assert rig.total("cancelled", "v2_grpc") == 1


def test_a_call_that_is_cancelled_ends_the_models_call() -> None:
    with grpc_rig() as (_, model, channel):
        call = unary(channel, "Wait").future(b"", timeout=PATIENCE_S)  # type: ignore[attr-defined]
        assert model.asked.acquire(timeout=PATIENCE_S)
        assert not model.left.is_set()
        call.cancel()
        assert model.left.wait(PATIENCE_S)


def test_a_model_that_dies_within_a_call_is_unavailable_and_no_address_is_told() -> None:
    with grpc_rig() as (_, model, channel):
        numbers = channel.unary_stream("/test.Model/Count")(b"3", timeout=PATIENCE_S)
        model.turn.release()
        assert next(numbers) == b"0"
        assert model.server is not None
        stopped = model.server.stop(None)
        with pytest.raises(grpc.RpcError) as broken:
            next(numbers)
        model.turn.release(3)
        stopped.wait(PATIENCE_S)
        assert broken.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert "127.0.0.1" not in broken.value.details()


def test_a_large_message_arrives_whole_and_one_beyond_the_limit_is_refused() -> None:
    with grpc_rig() as (_, _, channel):
        message = bytes(range(256)) * 20_000
        assert unary(channel, "Echo")(message, timeout=PATIENCE_S) == message
        with pytest.raises(grpc.RpcError) as refused:
            unary(channel, "Echo")(bytes(33 * 2**20), timeout=PATIENCE_S)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_message_that_never_fits_is_not_to_be_sent_again() -> None:
    with grpc_rig(max_held_bytes=100_000) as (_, _, channel):
        assert unary(channel, "Echo")(bytes(90_000), timeout=PATIENCE_S) == bytes(90_000)
        with pytest.raises(grpc.RpcError) as refused:
            unary(channel, "Echo")(bytes(110_000), timeout=PATIENCE_S)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "110000 bytes; at most 100000 are passed on" in refused.value.details()
        assert "retry-after" not in dict(refused.value.trailing_metadata())
        assert unary(channel, "Echo")(b"again", timeout=PATIENCE_S) == b"again"


def test_messages_and_bodies_that_wait_have_one_bound() -> None:
    settings = Settings(activator=ActivatorSettings(max_held_bytes=100))
    room = WaitingRoom("one bound", settings.activator, never, never)
    proxying = Proxying("one bound", settings.activator, room)
    proxy = GrpcProxy(proxying, GrpcUpstream("", 1.0), 1, settings)
    room.charge(60)
    with pytest.raises(Overloaded) as refused, proxy._counted(bytes(50)):
        pytest.fail("it was taken")
    assert refused.value.retry_after_s == RETRY_SOON_S  # no start is waited for
    with proxy._counted(bytes(40)):
        assert room.num_bytes == 100
    assert room.num_bytes == 60


async def never() -> bool:
    return False


def test_messages_that_never_end_are_so_many_and_harm_no_whole_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(arriving, "AT_ONCE_S", 0.01)
    part = struct.pack(">BI", 0, 500_000) + bytes(100)
    with grpc_rig(places=3) as (rig, _, channel):
        unary(channel, "Echo")(b"awake", timeout=PATIENCE_S)
        with connect(rig.server.grpc_port) as connection:
            for number in (1, 3, 5, 7):
                connection.open("/test.Model/Echo", number)
                connection.part(part, number)
            ended = connection.receive()
            while ended.kind != HEADERS:
                ended = connection.receive()
            assert b"has waited longest" in ended.payload
            assert unary(channel, "Echo")(b"whole", timeout=PATIENCE_S) == b"whole"


def test_a_stream_whose_answer_is_not_whole_is_ended_for_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(arriving, "AT_ONCE_S", PATIENCE_S)  # whole messages may come late
    monkeypatch.setattr(arriving, "AGAIN_S", 0.01)
    proxies: list[GrpcProxy] = []

    def made(*given: Any) -> GrpcProxy:
        proxies.append(GrpcProxy(*given))
        return proxies[-1]

    monkeypatch.setattr(activator_server, "GrpcProxy", made)
    with grpc_rig(places=2) as (rig, model, channel), ThreadPoolExecutor(5) as pool:

        def ask() -> list[bytes]:
            is_answered, found = threading.Event(), []

            def requests() -> Iterator[bytes]:
                yield b"one"
                assert is_answered.wait(PATIENCE_S)

            call = channel.stream_stream("/test.Model/Wait")(requests(), timeout=PATIENCE_S)
            try:
                for answer in call:
                    found.append(answer)
                    is_answered.set()
            finally:
                is_answered.set()
            return found

        asking = [pool.submit(ask) for _ in range(5)]
        for _ in asking:
            assert model.asked.acquire(timeout=PATIENCE_S)
        end_at_once(proxies[0]._arriving, rig.server._loop)
        for _ in range(20):  # meanwhile each of them looks for a place
            assert unary(channel, "Echo")(b"whole", timeout=PATIENCE_S) == b"whole"
        model.left.set()
        assert [each.result(PATIENCE_S) for each in asking] == [[b"one"]] * 5


@pytest.mark.parametrize("path", ODD_PATHS.values(), ids=ODD_PATHS)
def test_a_method_whose_name_is_no_text_ends_its_own_call_alone(path: bytes) -> None:
    with grpc_rig() as (rig, _, channel):
        assert unary(channel, "Echo")(b"before", timeout=PATIENCE_S) == b"before"
        with connect(rig.server.grpc_port) as odd:
            odd.call(path, b"")
            assert odd.answer() == b""
            assert b"grpc-status" in odd.trailers
        with grpc.insecure_channel(f"127.0.0.1:{rig.server.grpc_port}") as other:
            assert unary(other, "Echo")(b"after", timeout=PATIENCE_S) == b"after"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-note", b"\xc3\xbc"),
        ("x-note", b"a\tb"),
        ("x-forwarded-for", b"\xff"),
        ("x-request-timeout-ms", b"\xb2"),
    ],
)
def test_metadata_that_cant_be_passed_on_is_refused_by_its_name(name: str, value: bytes) -> None:
    with grpc_rig() as (rig, model, channel):
        unary(channel, "Echo")(b"awake", timeout=PATIENCE_S)
        model.metadata = {}
        with connect(rig.server.grpc_port) as connection:
            connection.call("/test.Model/Echo", b"", {name: value})
            connection.answer()
        assert f"the metadata '{name}' has characters".encode() in connection.trailers
        assert model.metadata == {}


def test_calls_beyond_those_that_have_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activator_server, "proxied_requests", lambda wanted, held: (64, 2))
    with grpc_rig() as (_, model, channel):
        wait = unary(channel, "Wait")
        waiting = [wait.future(b"", timeout=PATIENCE_S) for _ in range(2)]
        for _ in waiting:
            assert model.asked.acquire(timeout=PATIENCE_S)
        with pytest.raises(grpc.RpcError) as refused:
            unary(channel, "Echo")(b"", timeout=PATIENCE_S)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "2 gRPC calls are in progress already" in refused.value.details()
        assert "retry-after" in dict(refused.value.trailing_metadata())
        model.left.set()
        assert [each.result(PATIENCE_S) for each in waiting] == [b"", b""]
        assert unary(channel, "Echo")(b"again", timeout=PATIENCE_S) == b"again"
