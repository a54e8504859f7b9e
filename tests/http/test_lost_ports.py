"""A data port that is served no more, without anybody having asked for that, ends the process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import httpx
import pytest

from predictors.errors import FAILED_EXIT_CODE
from predictors.protocol.grpc.port import GrpcListener
from predictors.protocol.http.app import HttpServer
from tests.activator.scripted import activated, held_target
from tests.fakes import ScriptedEngine
from tests.http.echo import PATIENCE_S, Asking, Running, echo, held, serving


def in_loop(running: Running, work: Coroutine[Any, Any, Any]) -> None:
    """Run on the server's loop."""
    loop = running.server._loop
    assert loop is not None
    asyncio.run_coroutine_threadsafe(work, loop)


@pytest.fixture
def listeners(monkeypatch: pytest.MonkeyPatch) -> list[GrpcListener]:
    """Those that were made."""
    found: list[GrpcListener] = []
    make = GrpcListener.__init__

    def made(listener: GrpcListener, *given: Any) -> None:
        make(listener, *given)
        found.append(listener)

    monkeypatch.setattr(GrpcListener, "__init__", made)
    return found


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> list[HttpServer]:
    """Those of HTTP that were made, of the data port alone."""
    found: list[HttpServer] = []
    make = HttpServer.__init__

    def made(server: HttpServer, *given: Any, **more: Any) -> None:
        make(server, *given, **more)
        found.append(server)

    monkeypatch.setattr(HttpServer, "__init__", made)
    return found


def test_a_server_whose_grpc_port_ends_by_itself_ends_with_a_failure(
    listeners: list[GrpcListener],
) -> None:
    with serving(echo()) as running:
        in_loop(running, listeners[0]._server.stop(None))
        assert running.join() == FAILED_EXIT_CODE


def test_accepted_requests_of_http_are_answered_though_grpc_ended(
    listeners: list[GrpcListener],
) -> None:
    engine = ScriptedEngine()
    with held(engine) as (running, model), Asking(running) as asking:
        accepted = asking.post("accepted")
        model.wait_submitted()
        in_loop(running, listeners[0]._server.stop(None))
        with running.client() as http:
            until_not_ready(running, http)
        engine.open()
        assert accepted.result(PATIENCE_S).status_code == 200
        assert running.join() == FAILED_EXIT_CODE


def until_not_ready(running: Running, http: httpx.Client) -> None:
    loop = running.server._loop
    assert loop is not None
    leaving = running.server.registry.leaving.wait()
    asyncio.run_coroutine_threadsafe(leaving, loop).result(PATIENCE_S)
    assert http.get("/v2/health/ready").status_code == 503


def test_a_server_whose_http_port_ends_by_itself_ends_with_a_failure(
    servers: list[HttpServer],
) -> None:
    with serving(echo()) as running:
        end(servers[0])
        assert running.join() == FAILED_EXIT_CODE


def test_an_activator_whose_ports_end_by_themselves_ends_with_a_failure(
    listeners: list[GrpcListener], servers: list[HttpServer]
) -> None:
    def grpc_ends() -> None:
        loop = listeners[-1]._watching.get_loop()
        asyncio.run_coroutine_threadsafe(listeners[-1]._server.stop(None), loop)

    ways: list[Callable[[], None]] = [grpc_ends, lambda: end(servers[-1])]
    for way in ways:
        with held_target() as target, activated(grpc_target=target) as rig:
            with grpc.insecure_channel(f"127.0.0.1:{rig.server.grpc_port}") as channel:
                grpc.channel_ready_future(channel).result(PATIENCE_S)
            way()
            rig.thread.join(PATIENCE_S)
            assert not rig.thread.is_alive()
            assert rig.server._exit_code == FAILED_EXIT_CODE


def end(server: HttpServer) -> None:
    server.should_exit = True
