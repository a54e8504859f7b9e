"""A server whose stderr is a pipe without a reader serves, reports its health and exits."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.http.echo import PATIENCE_S, infer_body

ROOT = Path(__file__).parents[2]
REQUESTS = 2000
MOST_LINES, MOST_BYTES = 1000, 2**20


class ServerWithoutReader:
    """The server process, and a client with one connection."""

    def __init__(self, state: str) -> None:
        module, most = "tests.http.serve_logged", (str(MOST_LINES), str(MOST_BYTES))
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *most, state],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        url = f"http://127.0.0.1:{json.loads(line)}"
        self.http = httpx.Client(base_url=url, timeout=PATIENCE_S)

    def ask(self, times: int) -> None:
        """Send requests that are answered."""
        for _ in range(times):
            reply = self.http.post("/v2/models/echo/infer", json=infer_body("a"))
            assert reply.status_code == 200

    def wait_accepted(self, times: int) -> None:
        """Wait until `times` requests were accepted since the start."""
        assert self.process.stdout is not None
        for _ in range(times):
            assert self.process.stdout.readline() == "accepted\n"

    def dropped(self) -> int:
        """Number of dropped lines by the server's metric."""
        families = text_string_to_metric_families(self.http.get("/metrics").text)
        names = {s.name: s.value for family in families for s in family.samples}
        return int(names["predictors_log_records_dropped_total"])

    def read(self, dropped: int) -> list[dict[str, Any]]:
        """Read the log until its reports account for `dropped` lines: one report, or more of
        them where the writing thread was late."""
        assert self.process.stderr is not None
        lines = []
        for line in self.process.stderr:
            lines.append(json.loads(line))
            dropped -= lines[-1].get("dropped", 0)
            if dropped <= 0:
                break
        assert dropped == 0
        return lines

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self.http.close()


@pytest.fixture
def state() -> str:
    """The engine's state: `open` or `held`."""
    return "open"


@pytest.fixture
def stuck(state: str) -> Iterator[ServerWithoutReader]:
    server = ServerWithoutReader(state)
    yield server
    server.close()


def test_a_blocked_stderr_stops_neither_requests_nor_probes_nor_shutdown(
    stuck: ServerWithoutReader,
) -> None:
    stuck.ask(REQUESTS)
    assert stuck.http.get("/v2/health/live").status_code == 200
    assert stuck.dropped() > 0
    stuck.process.send_signal(signal.SIGTERM)
    assert stuck.process.wait(PATIENCE_S) == 0


def test_when_stderr_is_read_again_the_log_reports_the_dropped_lines(
    stuck: ServerWithoutReader,
) -> None:
    stuck.ask(REQUESTS)
    dropped = stuck.dropped()
    lines = stuck.read(dropped)
    logged = [
        line for line in lines if line["logger"] in {"predictors.access", "predictors.outcomes"}
    ]
    assert 2 * REQUESTS - len(logged) == dropped
    stuck.ask(1)
    stuck.process.send_signal(signal.SIGTERM)
    _, rest = stuck.process.communicate(timeout=PATIENCE_S)
    assert stuck.process.returncode == 0
    loggers = [json.loads(line)["logger"] for line in rest.splitlines()]
    assert loggers[:2] == ["predictors.outcomes", "predictors.access"]
    assert json.loads(rest.splitlines()[-1])["message"] == "stopped with exit code 0"


@pytest.mark.parametrize("state", ["held"])
def test_a_second_signal_ends_a_process_with_blocked_stderr(stuck: ServerWithoutReader) -> None:
    for _ in range(REQUESTS):
        assert stuck.http.get("/v2").status_code == 200
    assert stuck.dropped() > 0
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(stuck.http.post, "/v2/models/echo/infer", json=infer_body("a"))
        stuck.wait_accepted(1)
        for number in (signal.SIGTERM, signal.SIGINT):  # two equal signals may be merged into one
            stuck.process.send_signal(number)
        assert stuck.process.wait(PATIENCE_S) in {128 + signal.SIGTERM, 128 + signal.SIGINT}
        with pytest.raises(httpx.TransportError):
            held.result(PATIENCE_S)
