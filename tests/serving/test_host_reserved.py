"""Reserved places: a request that is being prepared is not refused for want of a place later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from predictors.errors import Draining, InvalidRequest, Overloaded
from predictors.serving.host import EngineHost
from predictors.serving.job import Job
from tests.fakes import ScriptedEngine, Task, answer
from tests.serving.conftest import MakeHost, busy, submit


@contextmanager
def reserved(host: EngineHost[Task, str], rows: int) -> Iterator[list[Job[Task, str]]]:
    """Places for rows, which are released unless jobs that took them over are put into the list."""
    host.reserve(rows)
    jobs: list[Job[Task, str]] = []
    try:
        yield jobs
    finally:
        if not jobs:
            host.release(rows)


def test_rows_that_are_being_prepared_count_and_are_not_refused_later(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=1)
    host = make_host(engine, capacity=2)
    busy(host, engine)
    with reserved(host, 1) as jobs:
        late = submit(host, Task("b"))
        with pytest.raises(Overloaded, match="2 of 2 places are taken"):
            submit(host, Task("c"))
        with pytest.raises(Overloaded), reserved(host, 1):
            raise AssertionError("this was accepted")
        jobs += host.submit([Task("a")], request_id="r", deadline=None, is_reserved=True)
    engine.open()
    assert answer(jobs[0]) == ["a:1"]
    assert answer(late[0]) == ["b:1"]


def test_free_slots_count_among_the_places_in_the_message(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=3)
    host = make_host(engine, capacity=2)
    with (
        reserved(host, 2),
        reserved(host, 2),
        pytest.raises(Overloaded, match="4 of 5 places are taken, 2 needed"),
    ):
        submit(host, Task("a"), Task("b"))


def test_places_of_rows_that_fail_to_be_prepared_are_free_again(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=1)
    host = make_host(engine, capacity=2)
    busy(host, engine)
    for _ in range(3):
        with pytest.raises(InvalidRequest), reserved(host, 2):
            raise InvalidRequest("this picture is none")
    assert len(submit(host, Task("a"), Task("b"))) == 2
    engine.open()


def test_reserved_places_stay_though_the_engine_refuses_jobs_meanwhile(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=2, budget=1)
    host = make_host(engine, capacity=1)
    submit(host, Task("first", steps=3))
    engine.wait_in_step()
    with reserved(host, 1) as jobs:  # a free slot counts as a place until the engine refuses a job
        submit(host, Task("refused"))
        engine.take_steps(1)
        engine.wait_in_step()
        with pytest.raises(Overloaded):
            submit(host, Task("too many"))
        jobs += host.submit([Task("a")], request_id="r", deadline=None, is_reserved=True)
    engine.open()
    assert answer(jobs[0]) == ["a:1"]


def test_a_reserved_place_gets_around_neither_a_drain_nor_validation(make_host: MakeHost) -> None:
    host = make_host(ScriptedEngine(budget=2, gated=False))
    with reserved(host, 1), pytest.raises(InvalidRequest, match="size 3 exceeds 2"):
        host.submit([Task("a", size=3)], request_id="r", deadline=None, is_reserved=True)
    with reserved(host, 1):
        host.drain(0.0)
        with pytest.raises(Draining):
            host.submit([Task("a")], request_id="r", deadline=None, is_reserved=True)
