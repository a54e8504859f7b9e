"""Adapters that come and go: what is refused and with which numbers, and that no job is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from predictors.__main__ import describe_folder
from predictors.compute.checkpoint.summary import CardFacts
from predictors.compute.device.placement import Placement
from predictors.compute.low_rank import AdapterWeights, LowRank, LowRankTable
from predictors.diffusion.active_adapters import make_adapters
from predictors.diffusion.adapters import STEP
from predictors.diffusion.engine import DiffusionEngine
from predictors.diffusion.request import ImageParameters, LoraScale
from predictors.errors import Draining, InvalidRequest, NotFound
from predictors.serving.host import EngineHost
from predictors.serving.job import Job
from predictors.settings import (
    ComputeSettings,
    FluxSettings,
    InvalidSetting,
    QueueSettings,
    Settings,
)
from tests.diffusion.driver import CHECKPOINT, EngineDriver, open_driver, unloaded_driver
from tests.diffusion.tiny_model import TinyModel
from tests.fakes import PATIENCE_S
from tests.models.flux.random_adapters import random_adapter

TO_Q = "transformer.single_transformer_blocks.1.attn.to_q"
KNOBS: dict[str, Any] = {"slots": 4, "lora_max_active": 2, "lora_max_rank": 8}
IMAGE = ImageParameters("a large red circle", num_inference_steps=2, seed=3)


def adapter(name: str, rank: int = 4) -> AdapterWeights:
    return random_adapter(name, rank, lambda path, place: place.stage == STEP and ".attn." in path)


def asking(*loras: tuple[str, float]) -> ImageParameters:
    return replace(IMAGE, loras=tuple(LoraScale(*pair) for pair in loras))


@pytest.fixture(scope="module")
def adapted() -> EngineDriver:
    """Holds `a` and `b` of rank 4: 8 of 16 rank rows are free."""
    driver = open_driver(model="flux-lora-2", **KNOBS)
    driver.engine.add_adapter(adapter("a"))
    driver.engine.add_adapter(adapter("b"))
    return driver


def refusal(driver: EngineDriver, weights: AdapterWeights) -> str:
    before = driver.engine.describe()["adapters"]
    with pytest.raises(InvalidRequest) as raised:
        driver.engine.add_adapter(weights)
    assert driver.engine.describe()["adapters"] == before
    return raised.value.message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", ["down", "up"])
def test_values_that_are_not_finite_are_refused_by_the_linears_name(
    adapted: EngineDriver, value: float, side: str
) -> None:
    weights = adapter("broken")
    getattr(weights.changes[TO_Q], side)[1, 2] = value
    message = refusal(adapted, weights)
    assert message == f"adapter broken: {TO_Q} holds values that are not finite"


def test_an_adapter_that_does_not_fit_is_refused_with_the_linear_and_the_numbers(
    adapted: EngineDriver,
) -> None:
    def one(path: str, down: tuple[int, int], up: tuple[int, int]) -> str:
        changes = {path: LowRank(torch.ones(down), torch.ones(up))}
        return refusal(adapted, AdapterWeights("c", "", changes))

    flux = "changes 3072 features to 3072 by ranks 4 and 4; the model has 160 to 160 there"
    assert one(TO_Q, (4, 3072), (3072, 4)) == f"adapter c: {TO_Q} {flux}"
    assert "by ranks 4 and 3" in one(TO_Q, (4, 160), (160, 3))
    assert "by ranks 0 and 0" in one(TO_Q, (0, 160), (160, 0))
    assert "has rank 9; flux.lora_max_rank is 8" in one(TO_Q, (9, 160), (160, 9))
    other = "transformer.transformer_blocks.19.attn.to_q"
    assert one(other, (4, 160), (160, 4)) == f"adapter c: {other} is no linear of this model"


def test_a_name_is_taken_once_and_full_tables_say_both_numbers(adapted: EngineDriver) -> None:
    assert "adapter a is loaded already; remove it first" in refusal(adapted, adapter("a"))
    adapted.engine.add_adapter(adapter("c", 5))
    full = refusal(adapted, adapter("d", 4))
    assert "adapter d has rank 4, but 3 of the 16 rank rows are free" in full
    adapted.engine.remove_adapter("c")
    with pytest.raises(NotFound, match="no adapter c is loaded"):
        adapted.engine.remove_adapter("c")
    adapted.engine.add_adapter(adapter("d", 8))
    adapted.engine.remove_adapter("d")
    assert adapted.engine.adapters.names == ("a", "b")


def test_a_copy_that_fails_gives_its_rank_rows_back(
    adapted: EngineDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, write, calls = adapted.engine.describe()["adapters"], LowRankTable.write, []

    def failing(table: LowRankTable, *args: Any) -> None:
        calls.append(table)
        if len(calls) == 2:
            raise RuntimeError("the copy failed")
        write(table, *args)

    monkeypatch.setattr(LowRankTable, "write", failing)
    with pytest.raises(RuntimeError, match="the copy failed"):
        adapted.engine.add_adapter(adapter("c", 8))
    assert adapted.engine.describe()["adapters"] == before
    adapted.engine.add_adapter(adapter("c", 8))  # all that were free are free
    adapted.engine.remove_adapter("c")


@pytest.mark.parametrize(
    ("loras", "message"),
    [
        ([("x", 1.0)], "no adapter 'x' is loaded"),
        ([("a", 1.0), ("x" * 999, 0.0)], f"no adapter '{'x' * 64}' is loaded"),
        ([("big", 1.0), ("a", 0.1)], "ranks are 9 together; at most 8"),
    ],
    ids=["unknown", "unknown at zero", "together"],
)
def test_a_request_for_more_than_there_is_is_refused(
    adapted: EngineDriver, loras: list[tuple[str, float]], message: str
) -> None:
    adapted.engine.add_adapter(adapter("big", 5))
    work = adapted.job(asking(*loras)).work
    with pytest.raises(InvalidRequest, match=message) as raised:
        adapted.engine.validate(work)
    assert raised.value.param == "loras"
    adapted.engine.validate(adapted.job(asking(("big", 1.0), ("a", 0.0))).work)
    adapted.engine.remove_adapter("big")


def test_switched_off_they_take_nothing_and_are_refused() -> None:
    driver = open_driver()
    assert "flux.lora_max_active is 0" in refusal(driver, adapter("a"))
    assert driver.engine.runner.passes.tables == {}
    assert driver.engine.adapters.widths == (0,)
    with pytest.raises(InvalidRequest):
        driver.engine.validate(driver.job(asking(("a", 1.0))).work)


def test_a_model_without_adapters_refuses_the_setting() -> None:
    with pytest.raises(InvalidSetting, match="this model takes no adapters"):
        make_adapters(
            TinyModel(),
            FluxSettings(lora_max_active=1),
            Placement(torch.device("cpu"), torch.float32, "off"),
        )


def test_tables_take_the_bytes_that_check_counts(adapted: EngineDriver) -> None:
    tables = adapted.engine.runner.passes.tables.values()
    held = sum(table.down.nbytes + table.up.nbytes for table in tables)
    assert held == adapted_bytes(**{k: KNOBS[k] for k in ("lora_max_active", "lora_max_rank")})
    assert adapted_bytes(lora_max_active=0) == 0


def adapted_bytes(**knobs: int) -> int:
    """`check`'s, for the embedded checkpoint in float32."""
    settings = Settings(compute=ComputeSettings(dtype="float32"), flux=FluxSettings(**knobs))
    summary = describe_folder(CHECKPOINT, settings, CardFacts())
    return next(o for o in summary.options if o.is_chosen).num_bytes.get("adapters", 0)


# -- under load ------------------------------------------------------------------------------------
FluxHost = EngineHost[Any, Any]


@pytest.fixture
def served() -> Iterator[tuple[EngineDriver, FluxHost]]:
    """A ready host whose engine got `first` before it was loaded."""
    driver = unloaded_driver(model="flux-lora-host", **KNOBS)
    driver.engine.add_adapter(adapter("first"))
    host: FluxHost = EngineHost("flux-lora-host", driver.engine, QueueSettings())
    host.start()
    host.wait_ready(PATIENCE_S)
    yield driver, host
    host.stop(PATIENCE_S)


def submitted(driver: EngineDriver, host: FluxHost, image: ImageParameters) -> Job[Any, Any]:
    (job,) = host.submit([driver.job(image).work], request_id="r", deadline=None)
    return job


def wait_for(host: FluxHost, jobs: list[Job[Any, Any]]) -> list[np.ndarray]:
    with host.jobs.removed:
        assert host.jobs.removed.wait_for(lambda: all(job.done for job in jobs), PATIENCE_S)
    assert [job.error for job in jobs] == [None] * len(jobs)
    return [job._chunks[0].pixels for job in jobs]


def test_adapters_come_and_go_under_load_and_every_job_gets_its_picture(
    served: tuple[EngineDriver, FluxHost], adapted: EngineDriver
) -> None:
    driver, host = served
    expected = {
        name: adapted.draw(asking((name, 1.0)) if name else IMAGE) for name in ("", "a", "b")
    }
    stop, drew = threading.Event(), {name: threading.Semaphore(0) for name in ("a", "b")}

    def draw_on() -> list[tuple[str, np.ndarray]]:
        """A picture without adapters and one with each that there is, again and again."""
        found = []
        while not stop.is_set():
            for name in ("", "a", "b"):
                try:
                    job = submitted(driver, host, asking((name, 1.0)) if name else IMAGE)
                except InvalidRequest:  # it is not there now
                    continue
                found.append((name, wait_for(host, [job])[0]))
                if name:
                    drew[name].release()
        return found

    with ThreadPoolExecutor(2) as pool:
        callers = [pool.submit(draw_on) for _ in range(2)]
        for _ in range(3):
            for name in ("a", "b"):
                driver.engine.add_adapter(adapter(name))
                wait_for(host, [submitted(driver, host, asking((name, 1.0)))])
            for name in ("a", "b"):
                assert drew[name].acquire(timeout=PATIENCE_S)  # so that a caller has met it
                driver.engine.remove_adapter(name)
                with pytest.raises(InvalidRequest):
                    submitted(driver, host, asking((name, 1.0)))
        stop.set()
        drawn = [one for caller in callers for one in caller.result(PATIENCE_S)]
    assert {name for name, _ in drawn} == {"", "a", "b"}
    assert all(np.array_equal(pixels, expected[name]) for name, pixels in drawn)
    assert driver.engine.describe()["adapters"] == {
        "ranks": {"first": 4}, "rank_rows": 16, "rank_rows_free": 12,
    }  # fmt: skip


def test_removing_waits_for_the_jobs_that_were_accepted(
    served: tuple[EngineDriver, FluxHost],
) -> None:
    driver, host = served
    jobs = [submitted(driver, host, asking(("first", 1.0))) for _ in range(7)]  # four slots
    driver.engine.remove_adapter("first")
    assert all(job.done for job in jobs)
    assert len({pixels.tobytes() for pixels in wait_for(host, jobs)}) == 1
    with pytest.raises(InvalidRequest, match="no adapter 'first'"):
        submitted(driver, host, asking(("first", 1.0)))


def test_an_adapter_from_before_the_start_draws_as_one_that_came_later(
    served: tuple[EngineDriver, FluxHost],
) -> None:
    driver, host = served
    before = wait_for(host, [submitted(driver, host, asking(("first", 1.0)))])
    driver.engine.remove_adapter("first")
    driver.engine.add_adapter(adapter("first"))
    after = wait_for(host, [submitted(driver, host, asking(("first", 1.0)))])
    assert np.array_equal(before[0], after[0])


def test_no_adapter_is_taken_once_the_engine_has_ended(
    served: tuple[EngineDriver, FluxHost],
) -> None:
    driver, host = served
    host.drain(0.0)
    with pytest.raises(Draining):
        driver.engine.add_adapter(adapter("late"))
    assert driver.engine.adapters.names == ("first",)
    host.stop(PATIENCE_S)
    with pytest.raises(Draining):
        driver.engine.add_adapter(adapter("later"))


def test_what_does_not_fit_before_the_start_fails_the_start() -> None:
    driver = unloaded_driver(model="flux-lora-full", **KNOBS)
    for name in ("a", "b", "c"):
        driver.engine.add_adapter(adapter(name, 6))
    with pytest.raises(InvalidRequest, match="adapter c has rank 6, but 4 of the 16"):
        driver.engine.load()


def test_an_engine_is_attached_to_its_host(served: tuple[EngineDriver, FluxHost]) -> None:
    driver, host = served
    assert isinstance(driver.engine, DiffusionEngine)
    assert driver.engine.adapters._host is host
