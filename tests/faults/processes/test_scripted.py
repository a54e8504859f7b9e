"""Faults of a whole process, with a scripted engine: too few descriptors, a wall clock that jumps,
a process that is stopped and goes on."""

from __future__ import annotations

import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.processes.server import ServerProcess, scripted
from tests.http.echo import infer_body

INFER = "/v2/models/echo/infer"
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
HOUR = 3600
LATE_S = 5.0  # deadline of a request that is accepted before it and never started


def ask(server: ServerProcess, prompt: str, **parameters: int) -> int:
    return server.post(INFER, infer_body(prompt, parameters=parameters)).status_code


@contextmanager
def connections(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Open connections that ask nothing."""
    opened: list[socket.socket] = []
    try:
        opened += [socket.create_connection(("127.0.0.1", port), 30) for _ in range(count)]
        yield opened
    finally:
        for each in opened:
            each.close()


def num_files(server: ServerProcess) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


# -- descriptors -----------------------------------------------------------------------------------
@pytest.mark.parametrize("files", [64, 256])
def test_connections_beyond_the_limit_on_files_do_no_harm(files: int) -> None:
    limit = (files, files)
    with scripted(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limit), open=True) as server:
        with connections(server.port, files + 200):
            assert server.get("/v2/health/live").status_code == 200
            assert server.get("/metrics").status_code == 200
            assert ask(server, "a") == 200
            assert num_files(server) < files
            server.wait_asleep()
        assert ask(server, "b") == 200
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def test_without_a_free_descriptor_the_loop_waits_and_goes_on_once_there_is_one() -> None:
    with scripted(open=True) as server, connections(server.port, 20):
        assert ask(server, "a") == 200
        pid, (_, hard) = server.process.pid, resource.getrlimit(resource.RLIMIT_NOFILE)
        soft = resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (num_files(server), hard))
        with connections(server.port, 50):  # the kernel takes them, `accept` can't
            server.wait_asleep()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert server.get("/v2/health/live").status_code == 200
        assert ask(server, "b") == 200


# -- clocks ----------------------------------------------------------------------------------------
@pytest.mark.skipif(not FAKETIME.exists(), reason="needs libfaketime (apt install faketime)")
def test_a_wall_clock_that_jumps_an_hour_moves_no_deadline(tmp_path: Path) -> None:
    offset = tmp_path / "offset"
    offset.write_text("+0")
    environ = {
        "LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1", "DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip
    with scripted(environ=environ) as server:
        for jump in (HOUR, -HOUR):
            offset.write_text(f"{jump:+d}")
            running = server.later(ask, server, "running", timeout=120_000_000)
            server.wait_accepted()
            waiting = server.later(ask, server, "waiting", timeout=120_000_000)
            server.wait_accepted()
            offset.write_text(f"{-jump:+d}")  # two hours, the other way
            assert abs(clock_of(server) - (time.time() - jump)) < HOUR / 2  # it did jump
            assert server.get("/v2/health/live").status_code == 200
            assert ask(server, "late", timeout=200_000) == 504  # by the clock that does not jump
            server.control("steps 2")
            assert [running.result(), waiting.result()] == [200, 200]
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def clock_of(server: ServerProcess) -> float:
    """Wall clock of the process by the line that its log has last, in seconds."""
    path = f"/nothing/{len(server.lines)}"
    assert server.get(path).status_code == 404
    stamp = server.wait_log(f"{path} ").split(",")[0]
    return time.mktime(time.strptime(stamp, "%Y-%m-%d %H:%M:%S"))


# -- stop and go on --------------------------------------------------------------------------------
def test_a_process_that_is_stopped_goes_on_and_keeps_its_deadlines() -> None:
    with scripted() as server:
        running = server.later(ask, server, "running")
        server.wait_accepted()
        late = server.later(ask, server, "late", timeout=round(LATE_S * 1e6))
        server.wait_accepted()
        deadline = time.monotonic() + LATE_S
        waiting = server.later(ask, server, "waiting")
        server.wait_accepted()
        server.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, server.process.pid, os.WSTOPPED | os.WNOWAIT)
        threading.Event().wait(deadline - time.monotonic())  # until it has passed
        sent_meanwhile = server.later(ask, server, "sent")
        server.signal(signal.SIGCONT)
        assert late.result() == 504
        server.wait_accepted()
        assert server.get("/v2/health/live").status_code == 200
        server.control("open")
        assert [each.result() for each in (running, waiting, sent_meanwhile)] == [200] * 3
