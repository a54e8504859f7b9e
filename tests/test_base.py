"""The path of a request without a transport: KServe's hooks, rows, cancellation, deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from kserve.model_repository import ModelRepository
from kserve.protocol.dataplane import DataPlane
from prometheus_client import REGISTRY

from predictors import base
from predictors.base import BasePredictor
from predictors.errors import DeadlineExceeded, InvalidRequest, NotReady, Overloaded, StepFailed
from predictors.protocol.call import Call
from predictors.protocol.kserve_sdk import (
    InferInput,
    InferRequest,
    InferResponse,
    Model,
)
from predictors.protocol.serves import Served, Startable
from predictors.protocol.v2.values import Tensor, V2Request
from predictors.serving.lifecycle import State
from tests.fakes import PATIENCE_S, ScriptedEngine, wait_idle
from tests.http.echo import EchoPredictor, Row, TaskPredictor, echo, small_settings


@pytest.fixture
def ready() -> Iterator[EchoPredictor]:
    """A loaded free-running predictor."""
    predictor = echo()
    predictor.load()
    yield predictor
    predictor.stop()


@pytest.fixture
def held() -> Iterator[tuple[TaskPredictor, ScriptedEngine]]:
    """A loaded predictor whose engine steps only when the test allows it."""
    engine = ScriptedEngine(slots=4)
    predictor = TaskPredictor("held", engine, small_settings(queue={"capacity": 4}))
    predictor.load()
    yield predictor, engine
    engine.open()
    predictor.stop()


def v2(*prompts: str, **parameters: Any) -> V2Request:
    tensor = Tensor("prompt", "BYTES", (len(prompts),), [p.encode() for p in prompts])
    return V2Request("echo", "", (tensor,), parameters)


def call() -> Call:
    return Call({}, protocol="v2_rest")


def repository(predictor: BasePredictor[Any, Any, Any]) -> ModelRepository:
    """KServe's registry with one model."""
    models = ModelRepository()
    models.update(predictor)
    return models


def test_a_predictor_is_a_kserve_model_and_what_the_server_starts(ready: EchoPredictor) -> None:
    assert isinstance(ready, Model)
    assert isinstance(ready, Served)
    assert isinstance(ready, Startable)
    assert ready.ready is True


def test_a_second_load_returns_at_once(ready: EchoPredictor) -> None:
    assert ready.load() is True


def test_a_stock_kserve_request_gets_a_stock_kserve_response(ready: EchoPredictor) -> None:
    tensor = InferInput("prompt", [2], "BYTES", data=["a red circle", "größer"])
    response, _ = asyncio.run(ready(InferRequest("echo", [tensor], request_id="x")))
    assert isinstance(response, InferResponse)
    assert response.id == "x"
    assert {o.name: o.data for o in response.outputs}["echo"] == [
        b"a red circle",
        "größer".encode(),
    ]


async def test_concurrent_predictions_of_kserves_own_server_share_steps() -> None:
    engine = ScriptedEngine(slots=10)
    predictor = TaskPredictor("held", engine, small_settings())
    predictor.load()
    plane = DataPlane(repository(predictor))
    names = [f"row {i}" for i in range(10)]
    asked = [
        asyncio.create_task(
            plane.infer("held", InferRequest("held", [InferInput("prompt", [1], "BYTES", [name])]))
        )
        for name in names
    ]
    await asyncio.to_thread(predictor.wait_submitted, len(names))
    engine.open()
    responses = [response for response, _ in await asyncio.gather(*asked)]
    predictor.stop()
    assert [response.outputs[0].data for response in responses] == [[x.encode()] for x in names]
    assert len(engine.steps) <= 2  # the first step may have begun before all were submitted


@pytest.mark.parametrize("is_kserves_server", [False, True])
def test_each_request_is_timed_once_by_kserves_histograms(
    ready: EchoPredictor, is_kserves_server: bool
) -> None:
    def counts() -> list[float | None]:
        names = (
            f"request_{stage}_seconds_count" for stage in ("preprocess", "predict", "postprocess")
        )
        return [REGISTRY.get_sample_value(name, {"model_name": "echo"}) for name in names]

    before = counts()
    if is_kserves_server:
        tensor = InferInput("prompt", [1], "BYTES", data=["a"])
        asyncio.run(DataPlane(repository(ready)).infer("echo", InferRequest("echo", [tensor])))
    else:
        asyncio.run(ready.infer(v2("a"), call()))
    assert counts() == [(count or 0) + 1 for count in before]


def test_a_request_is_received_from_its_head_until_it_is_prepared(ready: EchoPredictor) -> None:
    def seen() -> tuple[float, ...]:
        name, labels = "predictors_stage_duration_seconds", {"model": "echo", "stage": "receive"}
        return tuple(
            REGISTRY.get_sample_value(f"{name}_{kind}", labels) or 0.0 for kind in ("count", "sum")
        )

    count, total = seen()
    late = call()
    late.began_at -= 3600.0
    asyncio.run(ready.infer(v2("a"), late))
    assert seen()[0] == count + 1
    assert seen()[1] >= total + 3600.0


def test_rows_come_back_in_their_order(ready: EchoPredictor) -> None:
    response = asyncio.run(ready.infer(v2("a", "b", "c"), call()))
    assert list(response.outputs[0].data) == [b"a", b"b", b"c"]


def test_an_unloaded_predictor_refuses_before_it_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = echo("cold")
    with pytest.raises(NotReady):
        asyncio.run(predictor.infer(v2("a"), call()))
    assert predictor.seen == []
    assert asyncio.run(predictor.healthy()) is False


def test_the_rows_of_a_refused_request_never_start(
    held: tuple[TaskPredictor, ScriptedEngine],
) -> None:
    predictor, engine = held
    with pytest.raises(InvalidRequest, match="1 to 4 rows, not 9"):
        asyncio.run(predictor.infer(v2(*"abcdefghi"), call()))
    assert engine.steps == []


def test_one_failing_row_fails_its_request_and_cancels_the_others(
    held: tuple[TaskPredictor, ScriptedEngine],
) -> None:
    predictor, engine = held
    engine.poison["bad"] = RuntimeError("secret detail")
    engine.open()

    async def ask() -> None:
        rows = [Row("good", steps=1000000), Row("bad")]
        with pytest.raises(StepFailed) as caught:
            await predictor.run(rows, call())
        assert "secret" not in caught.value.message

    asyncio.run(ask())
    wait_idle(predictor.host)


def test_cancelling_the_task_cancels_every_job_of_the_request(
    held: tuple[TaskPredictor, ScriptedEngine],
) -> None:
    predictor, engine = held

    async def leave() -> None:
        asking = asyncio.create_task(predictor.run([Row("a", steps=9), Row("b", steps=9)], call()))
        await asyncio.to_thread(engine.wait_in_step)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(leave())
    engine.take_steps(1)
    wait_idle(predictor.host)
    assert len(engine.steps) == 1


def test_the_timeout_parameter_is_microseconds_and_only_tightens(ready: EchoPredictor) -> None:
    late = Call({}, protocol="v2_rest", deadline=0.0)
    with pytest.raises(DeadlineExceeded):
        asyncio.run(ready.infer(v2("a", timeout=60_000_000), late))


@pytest.mark.parametrize("timeout", [-1, "soon", True, "nan", float("inf")])
def test_a_timeout_that_is_not_a_positive_number_is_refused(
    ready: EchoPredictor, timeout: Any
) -> None:
    with pytest.raises(InvalidRequest, match="timeout must be a positive number"):
        asyncio.run(ready.infer(v2("a", timeout=timeout), call()))


def test_a_full_queue_refuses_before_anything_is_prepared(
    held: tuple[TaskPredictor, ScriptedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, engine = held
    prepared: list[str] = []
    prepare = predictor.prepare

    def note(row: Row) -> Any:
        prepared.append(row.prompt)
        return prepare(row)

    monkeypatch.setattr(predictor, "prepare", note)

    async def fill() -> None:
        submissions = await predictor.submit([Row(x) for x in "abcd"], call())
        await asyncio.to_thread(engine.wait_in_step)
        submissions += await predictor.submit([Row(x) for x in "efgh"], call())
        with pytest.raises(Overloaded):
            await predictor.run([Row("i")], call())
        engine.open()
        assert [[c async for c in submission.chunks()] for submission in submissions] == [
            [f"{x}:1"] for x in "abcdefgh"
        ]

    asyncio.run(fill())
    assert sorted(prepared) == list("abcdefgh")


def test_the_base_class_leaves_the_task_to_subclasses() -> None:
    assert not hasattr(BasePredictor, "task")


def test_stop_during_a_start_does_not_wait_for_the_usual_join_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base, "START_PATIENCE_S", 0.01)
    monkeypatch.setattr(base, "JOIN_TIMEOUT_S", 3600.0)
    engine = ScriptedEngine(hold=["warm"])
    predictor = TaskPredictor("compiling", engine, small_settings())
    predictor.start()
    assert predictor.host.lifecycle.wait_for(State.WARMING, timeout_s=PATIENCE_S) is State.WARMING
    predictor.stop()  # an hour would be over the test's time limit
    assert predictor.host.state is State.STOPPED
    engine.release("warm")
