"""The server as a KServe `ModelServer`, its addresses and log lines, and the import of KServe."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
from kserve import ModelServer

from predictors.errors import NotFound
from predictors.protocol.server import PredictorServer
from tests.http.echo import PATIENCE_S, echo, serving, small_settings

IMPORT = """
import logging, sys
sys.argv = ["predictors", "serve", "--model", "flux=/x", "--enable", "--http_port", "none"]
given = list(sys.argv)
from predictors.protocol.kserve_sdk import Model
from predictors.protocol.server import PredictorServer
assert sys.argv == given, sys.argv
assert logging.getLogger("kserve").handlers == [], "KServe configured its logging"
assert logging.getLogger().handlers == []
"""


LOOPBACK = "0100007F"  # as /proc writes 127.0.0.1
LOOPBACK_IN_V6 = "0000000000000000FFFF00000100007F"


def test_importing_kserve_does_not_read_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_it_is_a_kserve_server_that_models_can_be_registered_with() -> None:
    settings = small_settings()
    server = PredictorServer([echo("one", settings)], settings)
    assert isinstance(server, ModelServer)
    server.register_model(echo("two", settings))
    assert list(server.registry.models) == ["one", "two"]
    assert list(server.registered_models.get_models()) == ["one", "two"]
    with pytest.raises(NotFound):
        server.registry.find("three")


def test_one_line_is_logged_per_request_and_none_per_probe(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = small_settings()
    with (
        caplog.at_level(logging.INFO, logger="predictors.access"),
        serving(echo("echo", settings), settings=settings) as running,
        running.client() as http,
    ):
        for path in (
            "/",
            "/metrics",
            "/v2/health/live",
            "/v2/health/ready",
            "/v2/models/echo/ready",
        ):
            http.get(path)
        http.get("/v2/models/%0aforged", headers={"x-request-id": "r5"})
    lines = [x.getMessage() for x in caplog.records if x.name == "predictors.access"]
    assert len(lines) == 1
    assert lines[0].startswith("GET /v2/models/%0aforged 400 ")
    assert lines[0].endswith(" ms r5")


def test_it_listens_on_the_given_address_only() -> None:
    with serving(echo()) as running:
        assert running.server.wait_started(PATIENCE_S)
        with open("/proc/net/tcp", encoding="ascii") as table:
            rows = [line.split() for line in table.readlines()[1:]]
        with open("/proc/net/tcp6", encoding="ascii") as table:
            rows += [line.split() for line in table.readlines()[1:]]
        listening = {tuple(row[1].rsplit(":", 1)) for row in rows if row[3] == "0A"}
        for port in (running.server.http_port, running.server.grpc_port):
            hosts = {host for host, hexed in listening if int(hexed, 16) == port}
            assert len(hosts) == 1
            assert hosts <= {LOOPBACK, LOOPBACK_IN_V6}
