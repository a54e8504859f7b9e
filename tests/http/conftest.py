"""A running echo server for every test of the wire that does not need one of its own."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.http.echo import Running, echo, serving


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """One echo server per module, ready."""
    with serving(echo()) as server:
        yield server


@pytest.fixture
def client(running: Running) -> Iterator[httpx.Client]:
    """One keep-alive connection to it."""
    with running.client() as http:
        yield http
