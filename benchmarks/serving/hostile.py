"""How much one hostile caller slows down others. Each case of `hostile_cases` is sent in a loop,
while a prober asks for liveness and for a short answer.

`python -m benchmarks.serving.hostile [WORD ...]` runs the cases whose name contains one of the
words. Without words it runs all of them and writes benchmarks/results/hostile.json.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil

from benchmarks.common import paths
from benchmarks.serving.hostile_cases import CHAT, GRPC, Case, cases
from predictors.cli.child import ServerProcess

RESULTS = paths.RESULTS / "hostile.json"
LOG = paths.SCRATCH / "hostile.log"
MODELS = {"flux": paths.SHAPES_FLUX, "qwen-vl": paths.SHAPES_QWEN_VL}
QUESTION = {
    "model": "qwen-vl",
    "max_tokens": 4,
    "temperature": 0,
    "messages": [{"role": "user", "content": "Describe this picture."}],
}
PATIENCE_S = 120.0
START_S = 300.0
PROBE_EVERY_S = 0.02
TRIMMED_AFTER_S = 1.5  # the server gives memory back a second after a large request
SOON_S = 0.2


@dataclass(frozen=True)
class Outcome:
    """Milliseconds of the prober's requests while the attack was on, MiB of all processes."""

    case: str
    megabytes: float
    status: str
    requests: int
    live_p50_ms: float
    live_p99_ms: float
    live_max_ms: float
    small_p50_ms: float
    small_p95_ms: float
    small_alone_ms: float
    peak_mib: float
    after_first_mib: float
    after_mib: float


class Target:
    def __init__(self, url: str, grpc_port: int, pid: int) -> None:
        self._url = url
        self._process = psutil.Process(pid)
        options = [("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(f"127.0.0.1:{grpc_port}", options=options)
        self.http = httpx.Client(base_url=url, timeout=PATIENCE_S)

    def live(self) -> float:
        """Seconds of a liveness request."""
        started = time.perf_counter()
        assert self.http.get("/v2/health/live").status_code == 200
        return time.perf_counter() - started

    def small(self) -> float:
        """Seconds of another caller's short question."""
        started = time.perf_counter()
        reply = self.http.post(CHAT, json=QUESTION)
        assert reply.status_code == 200, reply.text
        return time.perf_counter() - started

    def mib(self) -> float:
        """Proportional memory of the server and its workers, and what is in shared memory."""
        total = 0
        for process in (self._process, *self._process.children(recursive=True)):
            try:
                rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                total += sum(
                    int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")
                )
                total += _unmapped_kib(process.pid)
            except OSError:  # it has just ended
                continue
        return total / 1024

    def close(self) -> None:
        self.http.close()
        self._channel.close()

    def send(self, case: Case) -> str:
        """One request of a case; returns its status and the beginning of its answer."""
        if not case.is_grpc:
            with httpx.Client(base_url=self._url, timeout=PATIENCE_S) as caller:
                path = case.path.format(chat="qwen-vl")
                reply = caller.post(path, content=case.body(), headers=dict(case.headers))
                return f"{reply.status_code} {reply.text[:160]}"
        method = self._channel.unary_unary(GRPC, lambda raw: raw, lambda raw: raw)
        compression = grpc.Compression.Gzip if case.is_gzipped else grpc.Compression.NoCompression
        try:
            method(case.body(), timeout=PATIENCE_S, compression=compression)
        except grpc.RpcError as error:
            return f"{error.code().name} {error.details()[:160]}"
        return "OK"


def _unmapped_kib(pid: int) -> int:
    """KiB of the anonymous files that a process holds open: bodies that are not mapped."""
    total = 0
    folder = Path(f"/proc/{pid}/fd")
    for entry in os.scandir(folder):
        try:
            if os.readlink(entry.path).startswith("/memfd:predictors"):
                total += os.stat(entry.path).st_blocks // 2
        except OSError:
            continue
    return total


def measure(
    target: Target,
    case: Case,
    *,
    seconds: float,
    alone_s: float,
    enough: Callable[[float, float], bool] = lambda mib, first: False,
) -> Outcome:
    """Send `case` in a loop, at least three times and for so many seconds, and probe meanwhile.

    The memory afterwards is read after `TRIMMED_AFTER_S`, or as soon as `enough` of the memory now
    and after the first request.
    """
    over, statuses = threading.Event(), [target.send(case)]
    time.sleep(TRIMMED_AFTER_S)
    after_first = target.mib()

    def attack() -> None:
        while not over.is_set():
            statuses.append(target.send(case))

    attacker = threading.Thread(target=attack)
    lives: list[float] = []
    smalls: list[float] = []
    peak, began = after_first, time.monotonic()
    attacker.start()
    try:
        while time.monotonic() - began < seconds or len(statuses) < 3 or not smalls:
            lives.append(target.live())
            if len(lives) % 4 == 0:
                smalls.append(target.small())
                peak = max(peak, target.mib())
            time.sleep(PROBE_EVERY_S)
    finally:
        over.set()
        attacker.join()
    after = target.mib()
    ended = time.monotonic()
    while time.monotonic() - ended < TRIMMED_AFTER_S and not enough(after, after_first):
        time.sleep(SOON_S)
        after = target.mib()
    lives_ms = sorted(1e3 * x for x in lives)
    smalls_ms = sorted(1e3 * x for x in smalls)
    return Outcome(
        case=case.name,
        megabytes=round(len(case.body()) / 1e6, 1),
        status=statuses[0],
        requests=len(statuses),
        live_p50_ms=round(statistics.median(lives_ms), 1),
        live_p99_ms=round(lives_ms[int(0.99 * len(lives_ms))], 1),
        live_max_ms=round(lives_ms[-1], 1),
        small_p50_ms=round(statistics.median(smalls_ms), 1),
        small_p95_ms=round(smalls_ms[int(0.95 * len(smalls_ms))], 1),
        small_alone_ms=round(1e3 * alone_s, 1),
        peak_mib=round(peak),
        after_first_mib=round(after_first),
        after_mib=round(after),
    )


def main(words: Sequence[str]) -> None:
    chosen = [c for c in cases() if not words or any(word in c.name for word in words)]
    found: list[dict[str, Any]] = []
    with ServerProcess(MODELS, LOG) as server:
        server.wait_ready(START_S, lambda what: None)
        assert server.pid is not None
        target = Target(server.url, server.grpc_port, server.pid)
        for _ in range(10):
            target.small()
        alone_s = statistics.median(target.small() for _ in range(30))
        for case in chosen:
            outcome = measure(target, case, seconds=6.0, alone_s=alone_s)
            found.append(asdict(outcome))
            print(json.dumps(asdict(outcome)), flush=True)
    if not words:
        machine = f"{platform.machine()}, {os.cpu_count()} cores"
        RESULTS.write_text(json.dumps({"machine": machine, "cases": found}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
