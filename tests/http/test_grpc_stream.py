"""`ModelStreamInfer`: requests on one stream, with one response or several, errors, leaving."""

from __future__ import annotations

import queue
import struct
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, NamedTuple

import grpc
import pytest

from predictors import metrics
from predictors.base import Answer
from predictors.protocol.call import Call
from predictors.protocol.grpc.protobuf_reader import WireReader
from predictors.protocol.kserve_sdk import pb
from predictors.protocol.v2.grpc_stream import MOST_REQUESTS
from predictors.protocol.v2.stream_responses import FINAL
from predictors.protocol.v2.values import V2Request, V2Response
from tests.fakes import ScriptedEngine
from tests.http.echo import PATIENCE_S, Running, TaskPredictor, serving, small_settings
from tests.http.test_grpc import request
from tests.http.test_keys import ANN, keyed

__all__ = ["keyed"]
METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"


class Streamer(TaskPredictor):
    """One response per step; the last is the complete one."""

    async def infer_stream(self, request: V2Request, call: Call) -> AsyncGenerator[V2Response]:
        assert request.is_streamed
        (row,) = await self._decode(request, call)
        submissions = await self.submit([row], call)
        try:
            async with aclosing(submissions[0].chunks()) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    step = int(chunk.partition(":")[2])
                    if step < row.steps:
                        parameters = {"step": step}
                        yield V2Response(self.name, "", (), parameters, is_final=False)
        except BaseException:
            self.left.set()
            raise
        finally:
            self.finish_call(submissions, call)
        yield self.encode_v2(request, [Answer(row, (), 0, 0)])


class Received(NamedTuple):
    error: str
    response: Any

    @property
    def is_final(self) -> bool:
        return bool(self.response.parameters[FINAL].bool_param)


def received(raw: bytes) -> Received:
    reader = WireReader(raw, 2)
    fields = {number: reader.bytes(span) for number, _, _, span in reader.fields(reader.whole)}
    return Received(fields.get(1, b"").decode(), pb.ModelInferResponse.FromString(fields[2]))


class Conversation:
    """One stream: requests in any form of bytes, responses as they come."""

    def __init__(self, channel: Any, **more: Any) -> None:
        self._requests: queue.Queue[bytes | None] = queue.Queue()
        method = channel.stream_stream(METHOD, response_deserializer=received)
        self.call = method(iter(self._requests.get, None), **{"timeout": PATIENCE_S} | more)

    def ask(self, name: str, steps: int = 1, *, identity: str = "", **parameters: Any) -> None:
        asked = request(name.encode())
        asked.id = identity or name
        asked.parameters["steps"].int64_param = steps
        for key, value in parameters.items():
            asked.parameters[key].bool_param = value
        self.send(asked.SerializeToString())

    def send(self, raw: bytes) -> None:
        self._requests.put(raw)

    def close(self) -> None:
        """No more requests come."""
        self._requests.put(None)

    def rest(self) -> list[Received]:
        self.close()
        return list(self.call)


@contextmanager
def talking(running: Running, **more: Any) -> Iterator[Conversation]:
    with grpc.insecure_channel(running.grpc_target) as channel:
        made = Conversation(channel, **more)
        try:
            yield made
        finally:
            made.close()
            made.call.cancel()


@contextmanager
def held(slots: int = 4) -> Iterator[tuple[Running, Streamer, ScriptedEngine]]:
    settings, engine = small_settings(), ScriptedEngine(slots=slots)
    model = Streamer("echo", engine, settings)
    with serving(model, settings=settings) as running:
        try:
            yield running, model, engine
        finally:
            engine.open()


def test_a_model_without_parts_answers_each_request_once(running: Running) -> None:
    with talking(running) as stream:
        for name in "abc":
            stream.ask(name)
        found = stream.rest()
    assert sorted(each.response.id for each in found) == ["a", "b", "c"]
    assert all(each.is_final and not each.error for each in found)
    assert found[0].response.outputs[0].name == "echo"
    assert dict(stream.call.trailing_metadata())["x-request-id"]


def test_a_response_comes_when_it_is_there_and_the_last_one_says_so() -> None:
    with held() as (running, _, engine), talking(running) as stream:
        stream.ask("a", 3, triton_enable_empty_final_response=True)
        for step in (1, 2):
            engine.take_steps(1)
            part = next(stream.call)
            assert part.response.parameters["step"].int64_param == step
            assert not part.is_final
        engine.open()
        last = next(stream.call)
        assert last.is_final
        assert last.response.raw_output_contents[0] == struct.pack("<I", 1) + b"a"


def test_requests_of_one_stream_run_together() -> None:
    with held() as (running, model, engine), talking(running) as stream:
        stream.ask("a", 2)
        stream.ask("b", 2)
        model.wait_submitted(2)
        engine.open()
        found = stream.rest()
    ids = [each.response.id for each in found if each.is_final]
    assert sorted(ids) == ["a", "b"]
    assert any({"a", "b"} <= set(step) for step in engine.steps)


def test_a_stream_has_a_bounded_number_of_requests_in_work() -> None:
    with held() as (running, model, engine), talking(running) as stream:
        for i in range(MOST_REQUESTS + 4):
            stream.ask(f"n{i}")
        model.wait_submitted(MOST_REQUESTS)
        assert len(model.seen) == MOST_REQUESTS
        engine.open()
        found = stream.rest()
    assert len(found) == MOST_REQUESTS + 4


def test_a_failure_is_a_response_and_the_stream_goes_on(running: Running) -> None:
    def count(reason: str, model: str = "echo") -> float:
        return metrics.requests_total.labels(model, "v2_grpc", "infer", reason)._value.get()

    names = (("ok", "echo"), ("invalid_input", "echo"), ("not_found", "unknown"))
    before = [count(*name) for name in names]
    unknown = pb.ModelInferRequest(model_name="nobody", id="u").SerializeToString()
    with talking(running) as stream:
        stream.ask("a", nope=True)
        stream.send(unknown)
        stream.send(b"\xff\xff\xff")  # no message at all
        stream.send(b"")
        stream.ask("good")
        found = stream.rest()
    errors = {each.response.id: each.error for each in found if each.error}
    assert "unknown parameter 'nope'" in errors.pop("a")
    assert "nobody" in errors.pop("u")
    assert len(errors) == 2  # under ids of the server's
    assert all(errors.values())
    (good,) = [each for each in found if not each.error]
    assert good.response.id == "good"
    after = [count(*name) for name in names]
    assert [x - y for x, y in zip(after, before, strict=True)] == [1, 1, 2]


def test_a_client_who_leaves_cancels_its_requests() -> None:
    with held() as (running, model, engine):
        with talking(running) as stream:
            stream.ask("left", 100)
            stream.ask("too", 100, identity="too")
            model.wait_submitted(2)
            engine.take_steps(1)
            next(stream.call)
            stream.call.cancel()
        assert model.left.wait(PATIENCE_S)
        running.wait_idle()
        engine.open()
    assert len(engine.steps) < 10


def test_a_deadline_ends_the_stream_and_is_counted() -> None:
    counter = metrics.requests_total.labels("echo", "v2_grpc", "infer", "deadline")
    is_counted, timeout_s = False, 0.3
    # on a busy machine the call may be over before its request is there, or long before it is here
    while not is_counted:
        assert timeout_s < PATIENCE_S
        before = counter._value.get()
        with held() as (running, model, _), talking(running, timeout=timeout_s) as stream:
            stream.ask("a", 100)
            with pytest.raises(grpc.RpcError) as ended:
                list(stream.call)
            assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert running.stop() == 0  # nothing is held any longer
        is_counted = model.left.is_set() and counter._value.get() == before + 1
        timeout_s *= 3


def test_a_stream_needs_a_key_where_others_do(keyed: Running) -> None:
    with talking(keyed) as stream, pytest.raises(grpc.RpcError) as refused:
        list(stream.call)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with talking(keyed, metadata=(("authorization", f"Bearer {ANN}"),)) as stream:
        stream.ask("a")
        (answer,) = stream.rest()
    assert answer.is_final


def test_each_request_of_a_stream_has_a_request_id_of_its_own() -> None:
    with held() as (running, _, engine):
        engine.open()
        with talking(running, metadata=(("x-request-id", "r7"),)) as stream:
            for _ in range(3):
                asked = request(b"a")
                stream.send(asked.SerializeToString())  # without an id
            found = stream.rest()
    assert sorted(each.response.id for each in found) == ["r7", "r7-2", "r7-3"]


def test_a_request_with_parts_is_refused_where_there_is_one_answer(running: Running) -> None:
    """The echo takes no `partial_images`; what FLUX says is in `tests/diffusion/test_codec.py`."""
    with talking(running) as stream:
        stream.ask("a", partial_images=True)
        (answer,) = stream.rest()
    assert "partial_images" in answer.error
