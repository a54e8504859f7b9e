"""Ports beside the data port: probes and scrapes, from the start of the process to its end."""

from __future__ import annotations

import logging
import socket
import threading

import httpx
import pytest

from predictors.protocol.server import PredictorServer
from predictors.settings import InvalidSetting
from tests.fakes import ScriptedEngine
from tests.http.echo import PATIENCE_S, Asking, Running, echo, held, serving, small_settings
from tests.http.test_grpc_bursts import busy_loop

APART = {"health_port": 0, "metrics_port": 0}
PROBES = {
    "/": 200,
    "/v2/health/live": 200,
    "/v2/health/ready": 200,
    "/v2/models/echo/ready": 200,
    "/v2/models/echo/versions/1/ready": 200,
}
DATA = ("/v2", "/v2/models", "/v2/models/echo", "/v1/models", "/openapi.json", "/debug/engine")


def ask(port: int, path: str, method: str = "GET") -> httpx.Response:
    return httpx.request(method, f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_S)


def statuses(port: int, paths: object) -> dict[str, int]:
    return {path: ask(port, path).status_code for path in paths}  # type: ignore[attr-defined]


def test_the_health_port_has_the_probes_and_nothing_else() -> None:
    with serving(echo(), settings=small_settings(server=APART)) as running:
        port = running.server.health_port
        assert port > 0
        assert statuses(port, PROBES) == PROBES
        assert set(statuses(port, [*DATA, "/metrics"]).values()) == {404}
        assert ask(port, "/v2/models/echo/infer", "POST").status_code == 404
        assert ask(port, "/v2/health/live", "POST").status_code == 405
        assert ask(port, "/v2/models/nobody/ready").status_code == 404


def test_the_metrics_port_has_the_scrape_and_nothing_else() -> None:
    with serving(echo(), settings=small_settings(server=APART)) as running:
        port = running.server.metrics_port
        assert "predictors_requests_total" in ask(port, "/metrics").text
        assert set(statuses(port, [*DATA, *PROBES]).values()) == {404}


def test_the_data_port_keeps_the_probes_and_loses_the_scrape() -> None:
    with serving(echo(), settings=small_settings(server=APART)) as running:
        assert statuses(running.server.http_port, PROBES) == PROBES
        assert ask(running.server.http_port, "/metrics").status_code == 404


def test_without_the_settings_all_is_on_the_data_port() -> None:
    with serving(echo()) as running:
        assert (running.server.health_port, running.server.metrics_port) == (-1, -1)
        assert statuses(running.server.http_port, PROBES) == PROBES
        assert ask(running.server.http_port, "/metrics").status_code == 200


def test_the_log_names_every_port(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO, logger="predictors.protocol.server"),
        serving(
            echo(),
            settings=small_settings(server={**APART, "admin_port": 0}),
            admin_routes=lambda registry, ending: [],
        ) as running,
    ):
        server = running.server
    [line] = [x.getMessage() for x in caplog.records if x.getMessage().startswith("serving echo")]
    assert line == (
        f"serving echo on 127.0.0.1: HTTP {server.http_port}, gRPC {server.grpc_port}, "
        f"health {server.health_port}, metrics {server.metrics_port}, admin {server.admin_port}"
    )


@pytest.mark.parametrize(
    ("setting", "purpose"),
    [("port", "HTTP"), ("health_port", "health"), ("metrics_port", "metrics")],
)
def test_a_port_that_is_taken_is_named_and_ends_the_start(setting: str, purpose: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = small_settings(server={**APART, setting: port})
        before = threading.active_count()
        with pytest.raises(InvalidSetting) as failure:
            PredictorServer([echo("echo", settings)], settings).run()
        assert f"127.0.0.1:{port} ({purpose})" in failure.value.message
        assert threading.active_count() <= before + 2  # the predictor's own threads


def test_probes_and_scrapes_are_answered_until_the_last_request_is() -> None:
    engine = ScriptedEngine()
    settings = small_settings(server=APART)
    with held(engine, settings) as (running, _), Asking(running) as asking:
        server = running.server
        accepted = asking.post("accepted")
        engine.wait_in_step()
        assert statuses(server.health_port, PROBES) == PROBES
        server.stop()
        assert wait_leaving(running)
        assert statuses(server.health_port, PROBES) == leaving()
        assert "predictors_draining 1.0" in ask(server.metrics_port, "/metrics").text
        engine.open()
        assert accepted.result(PATIENCE_S).status_code == 200
        assert running.join() == 0


def leaving() -> dict[str, int]:
    """Statuses of the probes while the server shuts down: alive, and not ready."""
    return {path: 503 if path.endswith("ready") else 200 for path in PROBES}


def wait_leaving(running: Running) -> bool:
    """Wait until the event loop has begun to shut down."""
    begun = threading.Event()
    loop = running.server._loop
    assert loop is not None
    loop.call_soon_threadsafe(begun.set)
    return begun.wait(PATIENCE_S)


def test_probes_are_answered_while_the_data_ports_event_loop_is_blocked() -> None:
    with serving(echo(), settings=small_settings(server=APART)) as running, busy_loop(running):
        assert statuses(running.server.health_port, PROBES) == PROBES
        assert ask(running.server.metrics_port, "/metrics").status_code == 200
