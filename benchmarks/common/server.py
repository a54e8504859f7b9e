"""A server in a process of its own: ours, or vLLM's where it is installed. Started, awaited,
measured and stopped.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

MODEL = "qwen-vl"
READY_S = 300.0
STOP_S = 60.0
WATCHED = (
    "recompilations_total", "graph_captures_total", "cache_requests_total", "model_phase_seconds",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Server:
    port: int
    ready_s: float
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            body: bytes = answer.read()
        return body.decode()

    def counters(self) -> dict[str, float]:
        """The series of /metrics about compilations, captures, caches and start-up phases."""
        found = {}
        for line in self.get("/metrics").splitlines():
            name, _, value = line.rpartition(" ")
            if not line.startswith("#") and any(watched in name for watched in WATCHED):
                found[name.removeprefix("predictors_")] = float(value)
        return found

    def host_bytes(self) -> int:
        return resident_bytes(self.process.pid)

    def device_bytes(self) -> int | None:
        return device_bytes()


def ours(port: int, folder: Path, settings: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Command line and environment; `settings` without `PREDICTORS_`, such as `QWEN_VL_SLOTS`."""
    command = [sys.executable, "-m", "predictors", "serve", "--port", str(port)]
    command += ["--grpc-port", "-1", "--model", f"{MODEL}={folder}"]
    return command, {f"PREDICTORS_{name}": value for name, value in settings.items()}


def vllm(port: int, folder: Path, slots: int) -> tuple[list[str], dict[str, str]]:
    """Command line and environment: caches off, default compile and graphs, as in the goals."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--port", str(port)]
    command += ["--model", str(folder), "--served-model-name", MODEL, "--dtype", "bfloat16"]
    command += ["--max-num-seqs", str(slots), "--max-model-len", "8192"]
    command += ["--no-enable-prefix-caching", "--mm-processor-cache-gb", "0"]
    return command, {}


def has_vllm() -> bool:
    return find_spec("vllm") is not None


@contextmanager
def running(
    command: Sequence[str],
    env: Mapping[str, str],
    port: int,
    log: Path,
    ready: str,
    cwd: Path | None = None,
) -> Iterator[Server]:
    """A server that is started, awaited and stopped at the end. `ready` is the path that answers
    200 once it is ready. Raises `RuntimeError` with the end of its log if it never gets there."""
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait(process, port, ready, log)
            yield Server(port, time.monotonic() - started, process)
        finally:
            stop(process)


def _wait(process: subprocess.Popen[bytes], port: int, path: str, log: Path) -> None:
    url, limit = f"http://127.0.0.1:{port}{path}", time.monotonic() + READY_S
    while process.poll() is None and time.monotonic() < limit:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    end = log.read_bytes()[-2000:].decode(errors="replace")
    raise RuntimeError(f"the server is not ready, exit code {process.poll()}: {end}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGINT, then SIGKILL after a minute."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def resident_bytes(pid: int) -> int:
    """Of one process (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def device_bytes() -> int | None:
    """Memory in use on the first card by all processes, this one's few hundred MiB included; None
    without a card."""
    import torch  # the clients' processes need none

    if not torch.cuda.is_available():
        return None
    free, whole = torch.cuda.mem_get_info(0)
    return whole - free
