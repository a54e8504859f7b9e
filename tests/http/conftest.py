"""A running echo server, shared by the tests of a module that need no server of their own."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.http.echo import Running, echo, serving


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """One ready echo server per module."""
    with serving(echo()) as server:
        yield server


@pytest.fixture
def client(running: Running) -> Iterator[httpx.Client]:
    """One keep-alive connection to the server."""
    with running.client() as http:
        yield http
