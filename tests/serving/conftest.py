"""Hosts for tests, each with its own model name, stopped at the end of the test."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import REGISTRY

from predictors import metrics
from predictors.serving.accounts import ANYONE, Caller
from predictors.serving.host import EngineHost
from predictors.serving.job import Job
from predictors.settings import QueueSettings
from tests.fakes import PATIENCE_S, ScriptedClock, ScriptedEngine, Task

_NUMBERS = itertools.count(1)

MakeHost = Callable[..., EngineHost[Task, str]]
NUMBERED = re.compile(r"(test|loop|property|fairness)-\d+")
"""Model names of the hosts in this folder, one for each host."""


@pytest.fixture(scope="module", autouse=True)
def _series_end_with_their_module() -> Iterator[None]:
    """A thousand models' series would make each scrape of a later test take a third of a
    second."""
    yield
    for series in vars(metrics).values():
        names = getattr(series, "_labelnames", ())
        if "model" in names:
            at = names.index("model")
            for labels in [each for each in series._metrics if NUMBERED.fullmatch(each[at])]:
                series.remove(*labels)


@pytest.fixture
def make_host() -> Iterator[MakeHost]:
    """`make_host(engine, clock=..., start=True, capacity=...)` returns a host that is ready."""
    made: list[tuple[EngineHost[Task, str], Any]] = []

    def make(
        engine: Any, *, clock: Any = None, start: bool = True, wait: bool = True, **settings: Any
    ) -> EngineHost[Task, str]:
        keywords = {} if clock is None else {"clock": clock}
        host = EngineHost(f"test-{next(_NUMBERS)}", engine, QueueSettings(**settings), **keywords)
        if isinstance(clock, ScriptedClock):
            clock.listeners.append(host.jobs.wake)
        made.append((host, engine))
        if start:
            host.start()
            if wait:
                host.wait_ready(PATIENCE_S)
        return host

    yield make
    for host, engine in made:
        if isinstance(engine, ScriptedEngine):
            engine.open()
        host.stop(PATIENCE_S)


def submit(
    host: EngineHost[Task, str],
    *tasks: Task,
    deadline: float | None = None,
    request_id: str = "r",
    caller: Caller = ANYONE,
) -> list[Job[Task, str]]:
    return host.submit(tasks, request_id=request_id, deadline=deadline, caller=caller)


def busy(
    host: EngineHost[Task, str], engine: ScriptedEngine, steps: int = 100
) -> list[Job[Task, str]]:
    """Fill every slot with long jobs and return while their first step is held."""
    jobs = submit(host, *(Task(f"long{i}", steps) for i in range(engine.slots)))
    engine.wait_in_step()
    return jobs


def sample(name: str, host: EngineHost[Task, str], **labels: str) -> float:
    """The value of a series of this host's model; 0 where there is none."""
    wanted = {"model": host.model, **labels}
    families = REGISTRY.restricted_registry([name]).collect()  # not all: there are many hosts
    samples = (each for family in families for each in family.samples)
    return next((s.value for s in samples if s.name == name and s.labels == wanted), 0.0)
