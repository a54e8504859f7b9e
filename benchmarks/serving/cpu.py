"""Cost of serving on the CPU: our HTTP edge beside stock KServe's, host time per step, a picture
over HTTP beside the bare engine. Prints a table and writes benchmarks/results/cpu.json.

`make bench-cpu`. Both sides of a row have the same payload, client and logging (one access line per
request) and take turns on the same machine; the figure is the median of the ratios of the turns.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import httpx

from benchmarks.common import paths
from benchmarks.common.machine import machine
from benchmarks.common.run import write_json
from benchmarks.common.server import Server, running
from benchmarks.common.tables import columns
from benchmarks.serving.host_overhead import measure as measure_host
from benchmarks.serving.refusals import measure as measure_refusals
from predictors.cli.child import ServerProcess, free_ports

RESULTS = paths.RESULTS / "cpu.json"
LOGS = paths.SCRATCH
TURNS = 5
WARM_REQUESTS = 300
LATENCY_REQUESTS = 1500
RATE_REQUESTS = 4000
RATE_CLIENTS = 16
JOB_TURNS = 15

Row = tuple[str, str, str, str]
HEAD: Row = ("what", "ours", "peer", "ratio (least to largest)")
PACKAGES = ("kserve", "torch", "transformers", "diffusers", "uvicorn")


def echo_server(module: str, port: int) -> AbstractContextManager[Server]:
    command = [sys.executable, "-m", f"benchmarks.serving.{module}", str(port)]
    return running(command, {}, port, LOGS / f"{module}.log", "/v2/models/echo/ready")


def client(port: int, connections: int, requests: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.serving.wire_client"]
    arguments = [str(port), str(connections), str(requests)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def measure_edges() -> dict[str, Any]:
    """V2 REST with an engine that does nothing, beside a bare KServe echo model."""
    ours, bare = free_ports(2)
    turns: dict[str, list[dict[str, float]]] = {"ours": [], "bare": []}
    rates: dict[str, list[dict[str, float]]] = {"ours": [], "bare": []}
    with echo_server("echo_ours", ours), echo_server("echo_bare", bare):
        sides = (("ours", ours), ("bare", bare))
        for _, port in sides:
            client(port, RATE_CLIENTS, WARM_REQUESTS)
        for turn in range(TURNS):
            for side, port in sides if turn % 2 == 0 else sides[::-1]:
                turns[side].append(client(port, 1, LATENCY_REQUESTS))
                rates[side].append(client(port, RATE_CLIENTS, RATE_REQUESTS))
    return {
        "latency_p50_ms": compare(turns, "p50_ms"),
        "latency_p99_ms": compare(turns, "p99_ms"),
        f"rate_{RATE_CLIENTS}_clients": compare(rates, "rate"),
    }


def compare(turns: dict[str, list[dict[str, float]]], key: str) -> dict[str, Any]:
    ours, bare = ([turn[key] for turn in turns[side]] for side in ("ours", "bare"))
    return paired(ours, bare)


def paired(ours: Sequence[float], peer: Sequence[float]) -> dict[str, Any]:
    """Medians of both sides and the median, least and largest ratio of the turns."""
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    return {
        "ours": statistics.median(ours),
        "peer": statistics.median(peer),
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 4) for ratio in ratios],
    }


def measure_job() -> dict[str, Any]:
    """One picture of the demo over HTTP, beside the same picture from the bare engine."""
    from benchmarks.serving.demo_job import CHECKPOINT, PROMPT, SEED

    inputs = [
        {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": [PROMPT]},
        {"name": "seed", "datatype": "INT64", "shape": [1], "data": [SEED]},
    ]

    def over_http(caller: httpx.Client) -> float:
        started = time.perf_counter()
        caller.post("/v2/models/flux/infer", json={"inputs": inputs}).raise_for_status()
        return time.perf_counter() - started

    command = [sys.executable, "-m", "benchmarks.serving.demo_job"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with ServerProcess({"flux": CHECKPOINT}, LOGS / "flux.log") as server:
        server.wait_ready(300.0, lambda what: None)
        bare = subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload]
        with bare, httpx.Client(base_url=server.url, timeout=120.0) as caller:
            bare.stdout.readline()
            over_http(caller)
            times = [
                take_turns(turn, lambda: over_http(caller), lambda: ask(bare))
                for turn in range(JOB_TURNS)
            ]
            bare.stdin.close()
    return paired([1000 * a for a, _ in times], [1000 * b for _, b in times])


def take_turns(
    turn: int, ours: Callable[[], float], peer: Callable[[], float]
) -> tuple[float, float]:
    """One turn of both sides; who begins alternates."""
    if turn % 2 == 0:
        return ours(), peer()
    theirs = peer()
    return ours(), theirs


def ask(bare: subprocess.Popen[str]) -> float:
    assert bare.stdin is not None
    assert bare.stdout is not None
    bare.stdin.write("draw\n")
    bare.stdin.flush()
    return float(bare.stdout.readline())


def shown(what: str, figure: dict[str, Any], unit: str, digits: int = 3) -> Row:
    spread = f"{min(figure['ratios']):.3f} to {max(figure['ratios']):.3f}"
    ours, peer = (f"{figure[side]:.{digits}f} {unit}" for side in ("ours", "peer"))
    return what, ours, peer, f"{figure['ratio']:.3f} ({spread})"


def print_results(results: dict[str, Any]) -> None:
    edges, job = results["edges"], results["job_ms"]
    rate = f"rate_{RATE_CLIENTS}_clients"
    rows = [
        shown("V2 REST, no-op engine, one client, p50", edges["latency_p50_ms"], "ms"),
        shown("V2 REST, no-op engine, one client, p99", edges["latency_p99_ms"], "ms"),
        shown(f"V2 REST, no-op engine, {RATE_CLIENTS} clients", edges[rate], "req/s", 0),
        shown("a demo picture, HTTP beside engine", job, "ms", 1),
    ]
    print(f"\n{columns([HEAD, *rows])}\n")
    for what, key in (("a full queue refuses", "refused_ms"), ("a wrong request", "wrong_ms")):
        figure = results["refusals"][key]
        print(f"{what}: {figure['median']:.1f} ms, slowest {figure['slowest']:.1f} ms")
    for scenario in results["host"]:
        spent = ", ".join(f"{n} waiting {us} us" for n, us in scenario["us_per_step"].items())
        print(f"host per engine step, {scenario['scenario']}: {spent}")


def main() -> int:
    sections: dict[str, tuple[str, Callable[[], Any]]] = {
        "edges": ("V2 REST with an engine that does nothing, beside stock KServe", measure_edges),
        "host": ("host time per engine step", measure_host),
        "refusals": ("refusals and wrong requests with a busy engine", measure_refusals),
        "job_ms": ("a demo picture over HTTP, beside the bare engine", measure_job),
    }
    results: dict[str, Any] = {"machine": machine(PACKAGES), "turns": TURNS}
    for name, (what, measure) in sections.items():
        print(f"{what} ...", flush=True)
        results[name] = measure()
    print_results(results)
    write_json(RESULTS, results)
    print(f"written to {RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
