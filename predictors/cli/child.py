"""Runs `python -m predictors serve` as a child process while a block lasts, for the demo, tests and
benchmarks.
"""

from __future__ import annotations

import queue
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO

import httpx

PROGRESS = re.compile(r"warming: (?P<what>.+)$")
"""The log line after each warmed shape. All other lines go to the log file only."""
POLL_EVERY_S = 0.1
TAIL_LINES = 15


class ServerFailed(Exception):
    """The server ended, was never ready or did not stop. The message has its last log lines."""


class ServerProcess:
    """A server on free ports of 127.0.0.1, stopped by SIGTERM. A context manager for one thread."""

    def __init__(
        self,
        models: Mapping[str, Path],
        log: Path,
        loras: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        self._models = dict(models)
        self._loras = dict(loras)
        self._log = log
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._tail: list[str] = []
        self._held = ExitStack()  # the ports, until the block ends
        self._stack = ExitStack()  # log file, stderr and reader thread
        self._process: subprocess.Popen[str] | None = None
        self.port = self.grpc_port = 0  # set on entering

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def __enter__(self) -> ServerProcess:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self.port, self.grpc_port = self._held.enter_context(held_ports(2))
        self._launch()
        return self

    def _launch(self) -> None:
        # a session of its own, so that Ctrl-C reaches only this process, which then stops the
        # server
        self._process = subprocess.Popen(
            self.command(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        assert self._process.stderr is not None
        log = self._stack.enter_context(self._log.open("w", encoding="utf-8"))
        stream = self._stack.enter_context(self._process.stderr)
        reader = threading.Thread(target=self._read, args=(stream, log), daemon=True)
        reader.start()
        self._stack.callback(reader.join)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._held, self._stack:
            code = self._stop()
        if kind is None and code != 0:
            raise ServerFailed(f"the server ended with {code} instead of 0\n{self.tail()}")

    def command(self) -> Sequence[str]:
        models = (f"--model={name}={path}" for name, path in self._models.items())
        loras = (f"--lora={name}={path}" for name, path in self._loras.items())
        ports = (
            f"--port={self.port}",
            f"--grpc-port={self.grpc_port}",
            "--host=127.0.0.1",
            "--log-format=text",
        )
        return [sys.executable, "-m", "predictors", "serve", *models, *loras, *ports]

    def wait_ready(self, timeout_s: float, on_progress: Callable[[str], None]) -> None:
        """Wait until every model is ready; calls `on_progress` for each warmed shape."""
        polls, is_up = int(timeout_s / POLL_EVERY_S), False
        with httpx.Client(base_url=self.url, timeout=5.0) as client:
            for _ in range(polls):
                if not self._report_line(on_progress):
                    continue
                if is_up:  # lines that were logged before it was ready have been reported too
                    return
                is_up = all(is_ready(client, m) for m in self._models)
        raise ServerFailed(f"the server was not ready after {timeout_s:.0f} s\n{self.tail()}")

    def tail(self) -> str:
        return "\n".join(self._tail)

    def _report_line(self, on_progress: Callable[[str], None]) -> bool:
        """Report one line. True if there is none for `POLL_EVERY_S`: poll readiness then."""
        try:
            line = self._lines.get(timeout=POLL_EVERY_S)
        except queue.Empty:
            return True
        if line is None:
            raise ServerFailed(f"the server ended while it started\n{self.tail()}")
        if found := PROGRESS.search(line):
            on_progress(found["what"])
        return False

    def _read(self, stream: IO[str], log: IO[str]) -> None:
        for line in stream:
            log.write(line)
            log.flush()
            self._tail = [*self._tail, line.rstrip()][-TAIL_LINES:]
            self._lines.put(line.rstrip())
        self._lines.put(None)

    def _stop(self) -> int:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def is_ready(client: httpx.Client, model: str) -> bool:
    """True if the model is ready; False also while nothing listens."""
    try:
        return client.get(f"/v2/models/{model}/ready").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def held_ports(count: int) -> Iterator[list[int]]:
    """Different ports of 127.0.0.1 that no other process is given while the block lasts.

    Each port is bound by a socket that does not listen. On Linux a server that allows the reuse of
    its address, as all servers do, may listen beside it. Elsewhere it may not, so the sockets are
    closed and the ports are only free at first.
    """
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in sockets]
        if sys.platform != "linux":
            stack.close()
        yield ports


def free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 that are free now. Another process may take them next."""
    with held_ports(count) as ports:
        return ports
