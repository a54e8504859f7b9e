"""A server of one's own for as long as a block lasts: `python -m predictors serve` beside this
process. Knows the command line, the readiness route and the log; nothing of what the models do.
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
from types import TracebackType
from typing import IO

import httpx

PROGRESS = re.compile(r"warming: (?P<what>.+)$")
"""What the server logs after each promised shape; the rest of its log goes to the file only."""
LOOK_EVERY_S = 0.1
TAIL_LINES = 15


class ServerFailed(Exception):
    """The server ended by itself, was never ready or did not stop; the message has its log."""


class ServerProcess:
    """Starts on free ports of 127.0.0.1, stops with SIGTERM. A context manager for one thread."""

    def __init__(self, models: Mapping[str, Path], log: Path) -> None:
        self._models = dict(models)
        self._log = log
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._tail: list[str] = []
        self._held = ExitStack()  # its ports, as long as the block lasts
        self._stack = ExitStack()  # what the process needs
        self._process: subprocess.Popen[str] | None = None
        self.port = self.grpc_port = 0  # until it is entered

    @property
    def url(self) -> str:
        """Where REST is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process's id, once it was started."""
        return None if self._process is None else self._process.pid

    def __enter__(self) -> ServerProcess:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self.port, self.grpc_port = self._held.enter_context(held_ports(2))
        self._begin()
        return self

    def _begin(self) -> None:
        """Start the process, at the addresses that are held for it."""
        # a session of its own: Ctrl-C reaches us alone, and we stop the server in order
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
        """What is run."""
        models = (f"--model={name}={path}" for name, path in self._models.items())
        ports = (
            f"--port={self.port}",
            f"--grpc-port={self.grpc_port}",
            "--host=127.0.0.1",
            "--log-format=text",
        )
        return [sys.executable, "-m", "predictors", "serve", *models, *ports]

    def wait_ready(self, timeout_s: float, on_progress: Callable[[str], None]) -> None:
        """Return when every model is ready, after a call of `on_progress` for each warmed shape."""
        looks, answers = int(timeout_s / LOOK_EVERY_S), False
        with httpx.Client(base_url=self.url, timeout=5.0) as client:
            for _ in range(looks):
                if not self._pass_on(on_progress):
                    continue
                if answers:  # what it said before it answered may have come while we asked
                    return
                answers = all(is_ready(client, m) for m in self._models)
        raise ServerFailed(f"the server was not ready after {timeout_s:.0f} s\n{self.tail()}")

    def tail(self) -> str:
        """The last lines of the server's log."""
        return "\n".join(self._tail)

    def _pass_on(self, on_progress: Callable[[str], None]) -> bool:
        """Hand on a line; True when none comes for a moment, so that it is time to look."""
        try:
            line = self._lines.get(timeout=LOOK_EVERY_S)
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
    """Whether the model answers now; False while nothing listens yet."""
    try:
        return client.get(f"/v2/models/{model}/ready").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def held_ports(count: int) -> Iterator[list[int]]:
    """Ports of 127.0.0.1, all different, that nobody else is given while the block lasts.

    Nobody listens there but who is told to: on Linux, beside a socket that does not listen, one
    that allows the reuse of its address may, as every server's does. Elsewhere it may not, and the
    ports are merely free.
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
    """Ports of 127.0.0.1 that are free now, all different; somebody else may be given them next."""
    with held_ports(count) as ports:
        return ports
