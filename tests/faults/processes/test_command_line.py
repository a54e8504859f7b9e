"""Faults of the command line's server with real models: hangs, a lost device, a kill, and machines
that lack names, a collector, writable folders or streams."""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from predictors.cli.child import held_ports
from predictors.errors import FAILED_EXIT_CODE
from tests.faults.processes.server import PATIENCE_S, ServerProcess, command_line
from tests.http.echo import png
from tests.observe.faulty import Faults

DRAIN_S = 2
READ_ONLY = (
    "mount --bind /tmp /tmp && mount -o remount,bind,ro /tmp && mount -t tmpfs -o ro none /dev/shm"
    ' && exec "$@"'
)
STREAMS = {
    "none at all": '<&- >&- 2>&- exec "$@"',
    "a log on a full disk": '2>/dev/full exec "$@"',
}
LOOK_EVERY_S = 0.05


def until(holds: Callable[[], bool]) -> None:
    """Return once it holds; no event comes from another process."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, "it never held"
        threading.Event().wait(LOOK_EVERY_S)


def live(server: ServerProcess) -> int:
    return server.get("/v2/health/live").status_code


def picture() -> list[object]:
    url = f"data:image/png;base64,{base64.b64encode(png(size=(64, 64))).decode()}"
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]


def children(server: ServerProcess) -> list[int]:
    return [
        int(pid)
        for pid in os.listdir("/proc")
        if pid.isdecimal() and _stat(pid)[1:2] == [str(server.process.pid)]
    ]


def _stat(pid: int | str) -> list[str]:
    """State and further fields of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def is_running(pid: int) -> bool:
    return bool(_stat(pid)) and _stat(pid)[0] not in "ZX"


# -- hangs -----------------------------------------------------------------------------------------
def test_hanging_threads_fail_liveness_and_hold_up_no_sigterm() -> None:
    times = {
        "PREDICTORS_QUEUE_STALL_TIMEOUT_S": "1",
        "PREDICTORS_SERVER_DRAIN_TIMEOUT_S": str(DRAIN_S),
        "PREDICTORS_SERVER_PREPARE_THREADS": "4",
    }
    with command_line("flux", module="tests.faults.processes.hanging", **times) as server:
        reply = server.draw("hangs in tokenizer", timeout=500_000)
        assert reply.status_code == 504
        assert server.draw("a red circle").status_code == 200  # another thread prepares
        until(lambda: live(server) == 503)
        asked = [server.later(server.draw, f"hangs in {where}") for where in ("tokenizer", "step")]
        until(lambda: server.metric('predictors_requests_running{model="flux"}') == 1)
        until(lambda: server.metric("predictors_requests_in_flight") == 2)
        server.signal(signal.SIGTERM)
        assert [each.result().status_code for each in asked] == [503, 503]
        assert server.wait() == 0
        left = server.wait_log("ending now: these threads hang")
        assert "flux's engine" in left
        assert "flux-prepare_0" in left


# -- the device ------------------------------------------------------------------------------------
def test_a_lost_device_answers_all_in_flight_and_ends_the_process(tmp_path: Path) -> None:
    faults = Faults(tmp_path)
    with command_line("flux", module="tests.observe.faulty", FAULTS=str(tmp_path)) as server:
        faults.set("hang-flux")
        asked = [server.later(server.draw, f"circle {i}") for i in range(6)]
        until(lambda: server.metric("predictors_requests_in_flight") == 6)
        faults.set("lose")
        faults.clear("hang-flux")
        replies = [each.result() for each in asked]
        assert {reply.status_code for reply in replies} == {503}
        assert "flux failed while ready" in replies[0].json()["error"]
        assert server.wait() == FAILED_EXIT_CODE
        server.wait_log("an engine failed, the process ends: flux failed while ready")


# -- kills -----------------------------------------------------------------------------------------
def test_killed_workers_cost_no_request_and_a_killed_server_starts_again(tmp_path: Path) -> None:
    keep = {"PREDICTORS_COMPUTE_CACHE_DIR": str(tmp_path)}
    with command_line("qwen-vl", **keep) as server:
        first = server.chat(picture())
        assert first.status_code == 200
        workers = children(server)
        assert len(workers) >= 2
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        until(lambda: not any(map(is_running, workers)))
        server.chat("Hello")
        again = server.chat([*picture(), {"type": "text", "text": " "}])
        assert again.status_code == 200
        workers, port = children(server), server.port
        lost = server.later(server.chat, "Hello", max_tokens=400)
        until(lambda: server.metric('predictors_requests_running{model="qwen-vl"}') == 1)
        server.signal(signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
        with pytest.raises(httpx.TransportError):
            lost.result()
        until(lambda: not any(map(is_running, workers)))  # none outlives its server
    with command_line("qwen-vl", flags=[f"--port={port}"], **keep) as server:
        assert server.port == port
        assert server.chat(picture()).json()["choices"] == first.json()["choices"]


# -- what a machine may lack -----------------------------------------------------------------------
def test_without_names_and_collector_it_serves_and_ends() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as collector:  # it takes, never answers
        there = f"http://127.0.0.1:{collector.getsockname()[1]}"
        module = "tests.faults.processes.without_names"
        with command_line(
            "flux", "qwen-vl", module=module, OTEL_EXPORTER_OTLP_ENDPOINT=there
        ) as server:
            assert server.draw("a red circle").status_code == 200
            assert server.chat(picture()).status_code == 200
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
            server.wait_log("the last spans are lost")
        assert not [line for line in server.lines if "a name was looked up" in line]


def may_mount() -> bool:
    try:
        return subprocess.run(["unshare", "-m", "true"], check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not may_mount(), reason="needs the right to make a mount namespace")
def test_without_a_folder_to_write_to_it_serves() -> None:
    around = ["unshare", "-m", "sh", "-c", READ_ONLY, "sh"]
    with command_line("flux", "qwen-vl", around=around) as server:
        assert server.draw("a red circle").status_code == 200
        assert server.chat(picture()).status_code == 200
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


@pytest.mark.parametrize("streams", STREAMS.values(), ids=STREAMS)
def test_without_streams_it_serves_and_ends(streams: str) -> None:
    with held_ports(1) as [port]:
        flags, around = [f"--port={port}"], ["bash", "-c", streams, "bash"]
        with command_line("qwen-vl", flags=flags, around=around, wait_ready=False) as server:
            server.port = port

            def is_ready() -> bool:
                assert server.process.poll() is None
                try:
                    return server.get("/v2/health/ready").status_code == 200
                except httpx.TransportError:
                    return False

            until(is_ready)
            assert server.chat(picture()).status_code == 200
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
