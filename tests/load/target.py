"""The server under load: the command line's, in a process of its own, pinned to its cores, and what
its processes hold while it runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from benchmarks.common import paths
from predictors.cli.child import held_ports
from predictors.protocol.heap_trims import TRIM_AFTER_OTHERS_S

MODELS = {"flux": paths.SHAPES_FLUX, "qwen-vl": paths.SHAPES_QWEN_VL}
START_S = 300.0
END_S = 120.0
SETTLE_S = 3.0
TRIMMED_S = TRIM_AFTER_OTHERS_S + 1.0
"""The server has given back by then what its requests have freed."""
SETTINGS = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
            "PREDICTORS_SERVER_LOG_FORMAT": "json"}  # fmt: skip


@dataclass(frozen=True)
class Cores:
    """Cores of the generator and of the server; both have all where there is only one."""

    generator: int
    server: tuple[int, ...]

    @classmethod
    def split(cls) -> Cores:
        first, *others = sorted(os.sched_getaffinity(0))
        return cls(first, tuple(others) or (first,))


@contextmanager
def pinned(cores: tuple[int, ...] | set[int]) -> Iterator[None]:
    """Processes that this thread starts meanwhile run on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Target:
    """A started server. `stop` ends it."""

    def __init__(self, log: Path, cores: Cores, settings: Mapping[str, str] = {}) -> None:
        self.log = log
        self.cores = cores
        self._held = held_ports(2)
        self.port, self.grpc_port = self._held.__enter__()
        models = [f"--model={name}={path}" for name, path in MODELS.items()]
        flags = ["--port", str(self.port), "--grpc-port", str(self.grpc_port)]
        log.parent.mkdir(parents=True, exist_ok=True)
        with pinned(cores.server), log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "predictors", "serve", *models, *flags],
                env={**os.environ, **SETTINGS, **settings}, cwd=paths.ROOT,
                stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            )  # fmt: skip
        self.tree = psutil.Process(self.process.pid)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60.0)
        self._wait_ready()

    def _wait_ready(self) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if self.http.get("/v2/health/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)  # another process: only its port tells
        raise RuntimeError(f"the server is not ready: {self.log.read_text()[-2000:]}")

    def sample(self, name: str, **labels: str) -> float:
        """A series on /metrics, summed over its other labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        total = 0.0
        for line in self.http.get("/metrics").text.splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and all(each in series for each in wanted):
                total += float(value)
        return total

    def settled(self, at_s: float = 0.0, rest_s: float = SETTLE_S) -> Held:
        """Its memory, descriptors and threads once all is answered and `rest_s` have passed."""
        self.wait_idle()
        time.sleep(rest_s)  # a measurement of rest
        return Held.of(self.tree, at_s)

    def wait_idle(self, patience_s: float = 120.0) -> None:
        """Until nothing runs or waits."""
        end = time.monotonic() + patience_s
        while time.monotonic() < end:
            names = ("predictors_requests_running", "predictors_requests_waiting")
            if not any(self.sample(name) for name in names):
                return
            time.sleep(0.2)  # another process: only its series tell
        raise RuntimeError("the server is still at work")

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.http.close()
        if self.process.poll() is None:
            self.signal()
        try:
            code = self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._held.__exit__(None, None, None)
        return code

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


@dataclass(frozen=True, slots=True)
class Held:
    """Resources of a server and its worker processes."""

    rss_mib: float
    own_mib: float
    """Pages of no file: what others on the machine map does not change it, as it changes PSS."""
    fds: int
    threads: int
    processes: int
    at_s: float = 0.0

    @classmethod
    def of(cls, root: psutil.Process, at_s: float = 0.0) -> Held:
        rss = own = 0.0
        fds = threads = count = 0
        for process in (root, *root.children(recursive=True)):
            try:
                rss, own = rss + process.memory_info().rss / 2**20, own + _anonymous_mib(process)
                fds, threads = fds + process.num_fds(), threads + process.num_threads()
            except (psutil.NoSuchProcess, ProcessLookupError):  # a worker was replaced
                continue
            count += 1
        return cls(round(rss, 1), round(own, 1), fds, threads, count, round(at_s, 2))


def _anonymous_mib(process: psutil.Process) -> float:
    try:
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
    except FileNotFoundError as error:
        raise ProcessLookupError from error
    line = next(line for line in rollup.splitlines() if line.startswith("Anonymous:"))
    return int(line.split()[1]) / 1024


class Watching:
    """Samples a server once per interval, in a thread, while the block lasts."""

    def __init__(self, target: Target, every_s: float = 1.0) -> None:
        self._target = target
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.samples: list[Held] = []

    def _run(self) -> None:
        began = time.monotonic()
        while not self._over.wait(self._every_s):
            try:
                self.samples.append(Held.of(self._target.tree, time.monotonic() - began))
            except psutil.NoSuchProcess:
                return

    def __enter__(self) -> Watching:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
