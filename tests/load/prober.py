"""A process of its own that asks for health and metrics while others load the server.

`python -m tests.load.prober PORT CORE` asks until its standard input ends, then prints the
milliseconds of each route as JSON. It has one connection, as a kubelet or a Prometheus has.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import subprocess
import sys
import time

from benchmarks.common import paths
from predictors.cli.bench.intervals import quantile
from tests.load.target import Cores, pinned

EVERY_S = 0.05
METRICS_EVERY = 20
ROUTES = ("/v2/health/live", "/v2/health/ready", "/v2/models/flux/ready")


def asked_ms(connection: http.client.HTTPConnection, path: str) -> float:
    began = time.perf_counter()
    connection.request("GET", path)
    reply = connection.getresponse()
    reply.read()
    if reply.status != 200:
        raise RuntimeError(f"{path} is {reply.status}")
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    port, core = int(sys.argv[1]), int(sys.argv[2])
    os.sched_setaffinity(0, {core})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    took: dict[str, list[float]] = {"health": [], "metrics": []}
    failed: list[str] = []
    count = 0
    while not select.select([sys.stdin], [], [], EVERY_S)[0]:
        is_metrics = count % METRICS_EVERY == 0
        path = "/metrics" if is_metrics else ROUTES[count % len(ROUTES)]
        count += 1
        try:
            took["metrics" if is_metrics else "health"].append(asked_ms(connection, path))
        except (OSError, http.client.HTTPException, RuntimeError) as error:
            failed.append(f"{path}: {type(error).__name__} {error}"[:100])
            connection.close()
    found = {name: _quantiles(values) for name, values in took.items()}
    print(json.dumps({**found, "failed": failed[:20], "failures": len(failed)}))


def _quantiles(values: list[float]) -> dict[str, float | int | None]:
    return {
        "count": len(values),
        "p50_ms": _rounded(quantile(values, 0.5)),
        "p99_ms": _rounded(quantile(values, 0.99)),
        "max_ms": _rounded(max(values, default=None)),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


class Probing:
    """The prober beside a run; `found` is what it printed."""

    def __init__(self, port: int, cores: Cores) -> None:
        self._command = [sys.executable, "-m", "tests.load.prober", str(port), str(cores.generator)]
        self._cores = cores
        self.found: dict[str, object] = {}

    def __enter__(self) -> Probing:
        with pinned({self._cores.generator}):
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                cwd=paths.ROOT,
            )  # fmt: skip
        return self

    def __exit__(self, *error: object) -> None:
        out, _ = self._process.communicate("")
        self.found = json.loads(out) if out else {"failed": ["no output"], "failures": 1}


if __name__ == "__main__":
    main()
