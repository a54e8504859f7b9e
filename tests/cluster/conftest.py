"""A mounted ServiceAccount, an API server and reporters that are closed after the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from predictors.cli.child import held_ports
from predictors.cluster.reporter import EventReporter
from predictors.settings import ClusterSettings
from tests.cluster.apiserver import (
    PATIENCE_S,
    SERVICE,
    State,
    api_server,
    fresh_state,
    identity,
    mounted,
)

BRISK = ClusterSettings(interval_s=0.0, timeout_s=PATIENCE_S)

MakeReporter = Callable[..., EventReporter]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where Kubernetes would mount the ServiceAccount."""
    return mounted(tmp_path / "serviceaccount")


@pytest.fixture
def state() -> State:
    return fresh_state()


@pytest.fixture
def port(folder: Path, state: State) -> Iterator[int]:
    """The port of an API server that answers."""
    with api_server(folder, state) as port:
        yield port


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A port that is held and where nothing listens."""
    with held_ports(1) as ports:
        yield ports[0]


@pytest.fixture
def reporting(folder: Path) -> Iterator[MakeReporter]:
    """`reporting(port, settings, service)`: a reporter that was started."""
    made: list[EventReporter] = []

    def make(port: int, settings: ClusterSettings = BRISK, service: str = SERVICE) -> EventReporter:
        made.append(EventReporter(identity(folder, port, service), settings))
        made[-1].start()
        return made[-1]

    yield make
    for reporter in made:
        reporter.close(PATIENCE_S)
