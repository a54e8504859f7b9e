"""A mounted ServiceAccount, an API server and reporters that end with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from predictors.cli.child import held_ports
from predictors.cluster.reporter import Reporter
from predictors.settings import ClusterSettings
from tests.cluster.apiserver import (
    PATIENCE_S,
    SERVICE,
    State,
    account,
    api_server,
    fresh_state,
    mounted,
)

BRISK = ClusterSettings(interval_s=0.0, timeout_s=PATIENCE_S)

MakeReporter = Callable[..., Reporter]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where Kubernetes would mount the ServiceAccount."""
    return mounted(tmp_path / "serviceaccount")


@pytest.fixture
def state() -> State:
    """What the API server holds."""
    return fresh_state()


@pytest.fixture
def port(folder: Path, state: State) -> Iterator[int]:
    """Of an API server that answers."""
    with api_server(folder, state) as port:
        yield port


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A port where nobody listens, and nobody else will."""
    with held_ports(1) as ports:
        yield ports[0]


@pytest.fixture
def reporting(folder: Path) -> Iterator[MakeReporter]:
    """`reporting(port, settings, service)`: a reporter that has begun to tell."""
    made: list[Reporter] = []

    def make(port: int, settings: ClusterSettings = BRISK, service: str = SERVICE) -> Reporter:
        made.append(Reporter(account(folder, port, service), settings))
        made[-1].start()
        return made[-1]

    yield make
    for reporter in made:
        reporter.close(PATIENCE_S)
