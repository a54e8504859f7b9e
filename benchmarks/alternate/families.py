"""The cases that `benchmarks.alternate` compares. A family starts one long-lived process per source
tree and returns its timed runs by name; one call of a run gives figures by name. Every figure is a
time, so that a larger one is slower; rates are given as milliseconds per request.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.common import paths
from benchmarks.common import server as servers
from benchmarks.qwen_vl import client
from benchmarks.qwen_vl.answers import summed_up
from benchmarks.qwen_vl.cases import Case
from benchmarks.qwen_vl.sizes import THREE
from benchmarks.serving import stream_cost
from benchmarks.serving.wire_client import measure as echo_requests
from predictors.cli.child import free_ports

Run = Callable[[int], Mapping[str, float]]
"""Takes the number of the pair: both trees get the same requests in one pair."""

WORKER = Path(__file__).with_name("worker.py")
READY = "/v2/health/ready"
APART = 100_000  # conversations of one run
CASE_S = 120.0
CHAT_CASES = (
    Case(1, "448x448", 8),
    Case(1, "text", 12),
    Case(64, "448x448", 256),
    Case(64, "text", 384),
)
SMALL_CHAT_CASES = (Case(1, "text", 6, 32), Case(1, "64x64", 6, 16), Case(4, "text", 16, 32))


@dataclass(frozen=True, slots=True)
class Options:
    device: str
    is_small: bool
    """The embedded checkpoints' size and few steps."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A checkout; `name` is `parent` or `this`."""

    name: str
    root: Path

    def module(self, *names: str) -> str:
        for name in names:
            if (self.root / Path(*name.split("."))).with_suffix(".py").exists():
                return name
        raise ModuleNotFoundError(f"none of {', '.join(names)} in {self.root}")

    @property
    def environment(self) -> dict[str, str]:
        known = (str(self.root), os.environ.get("PYTHONPATH", ""))
        return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, known))}

    def log(self, family: str) -> Path:
        paths.SCRATCH.mkdir(parents=True, exist_ok=True)
        return paths.SCRATCH / f"alternate-{family}-{self.name}.log"


class Asked:
    """A process of a tree that answers each line on its standard input with one line of JSON."""

    def __init__(
        self,
        stack: ExitStack,
        tree: Tree,
        family: str,
        command: Sequence[str],
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._log = tree.log(family)
        log = stack.enter_context(self._log.open("w"))
        self._process = subprocess.Popen(
            [sys.executable, *command],
            cwd=tree.root,
            env={**tree.environment, **settings},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        stack.enter_context(self._process)
        stack.callback(self._process.kill)
        self.ready = self._read()

    def ask(self, command: object) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process ended: {self._log.read_text()[-2000:]}")
        return line


def worker(stack: ExitStack, tree: Tree, kind: str, options: Mapping[str, object]) -> Asked:
    """`worker.py` in a tree. Raises `RuntimeError` if it imported another tree's package."""
    asked = Asked(stack, tree, kind, ["-P", str(WORKER), kind, json.dumps(options)])
    if (found := json.loads(asked.ready)["tree"]) != str(tree.root):
        raise RuntimeError(f"{tree.name} imports predictors from {found}, not {tree.root}")
    return asked


# -- on the CPU ------------------------------------------------------------------------------------
def echo(stack: ExitStack, tree: Tree, options: Options) -> dict[str, Run]:
    """V2 REST around a no-op engine: one client's latency, sixteen clients' rate."""
    module = tree.module("benchmarks.serving.echo_ours", "benchmarks.echo_ours")
    (port,) = free_ports(1)
    start = [sys.executable, "-m", module, str(port)], tree.environment
    ready = "/v2/models/echo/ready"
    running = servers.running(*start, port, tree.log("echo"), ready, cwd=tree.root)
    pid = stack.enter_context(running).process.pid

    def requests(clients: int, count: int) -> dict[str, float]:
        before = cpu_seconds(pid)
        found = asyncio.run(echo_requests(port, clients, count))
        cpu_us = 1e6 * (cpu_seconds(pid) - before) / count
        return found | {"ms per request": 1000 / found["rate"], "server's cpu us": cpu_us}

    def alone(pair: int) -> Mapping[str, float]:
        found = requests(1, 1500)
        return {
            "p50 ms": found["p50_ms"],
            "p99 ms": found["p99_ms"],
            "server's cpu us": found["server's cpu us"],
        }

    def together(pair: int) -> Mapping[str, float]:
        found = requests(16, 4000)
        return {name: found[name] for name in ("ms per request", "server's cpu us")}

    return {"1 client": alone, "16 clients": together}


def cpu_seconds(pid: int) -> float:
    """CPU time of the process's threads (Linux): hardly moved by a busy machine."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def host(stack: ExitStack, tree: Tree, options: Options) -> dict[str, Run]:
    """Host time per step of a no-op engine: steady, with turnover, with cancellations."""
    asked = worker(stack, tree, "host", {"rounds": 1, "turns": 200})
    names = ("steady", "turnover", "cancel")
    return {
        name: lambda pair, number=i: asked.ask(number)  # type: ignore[misc]
        for i, name in enumerate(names)
    }


def stream(stack: ExitStack, tree: Tree, options: Options) -> dict[str, Run]:
    """CPU time of the event loop per streamed token, 64 streams, nothing coalesced."""
    module = tree.module("benchmarks.serving.stream_cost", "benchmarks.stream_cost")
    (port,) = free_ports(1)
    command = [sys.executable, "-m", module, "--serve", "lockstep", "--port", str(port)]
    environment = tree.environment | {"PREDICTORS_LOG_LEVEL": "WARNING"}
    server = stack.enter_context(
        servers.running(command, environment, port, tree.log("stream"), READY, cwd=tree.root)
    )

    def tokens(pair: int) -> Mapping[str, float]:
        found = asyncio.run(stream_cost.one_round(port, server.process.pid))
        return {"us per token": found["loop_us_per_token"]}

    return {"lockstep": tokens}


def picture(stack: ExitStack, tree: Tree, options: Options) -> dict[str, Run]:
    """A picture of the demo checkpoint by the bare engine, on the CPU."""
    module = tree.module("benchmarks.serving.demo_job", "benchmarks.demo_job")
    on_cpu = {"PREDICTORS_COMPUTE_DEVICE": "cpu"}
    asked = Asked(stack, tree, "picture", ["-m", module], on_cpu)
    return {"demo": lambda pair: {"s": asked.ask("draw")}}


# -- on a GPU, or small ----------------------------------------------------------------------------
def flux(stack: ExitStack, tree: Tree, options: Options) -> dict[str, Run]:
    tiers = ("lossless", "turbo") if options.is_small else ("lossless", "high", "turbo")
    chosen = {
        "device": options.device,
        "is_small": options.is_small,
        "size": (64, 64) if options.is_small else (1024, 1024),
        "steps": 9 if options.is_small else 28,
        "tiers": tiers,
    }
    asked = worker(stack, tree, "flux", chosen)
    return {tier: lambda pair, tier=tier: asked.ask(tier) for tier in tiers}  # type: ignore[misc]


def qwen_vl(stack: ExitStack, tree: Tree, options: Options) -> dict[str, Run]:
    """Qwen2.5-VL through its server with streaming clients, on random weights."""
    folder = random_checkpoint(options)
    (port,) = free_ports(1)
    settings = {
        "QWEN_VL_SLOTS": "4" if options.is_small else "64",
        "QUEUE_CAPACITY": "256",
        "COMPUTE_DEVICE": options.device,
        "SERVER_ACCESS_LOG": "false",
        "SERVER_LOG_LEVEL": "warning",
    }
    if not options.is_small:  # two servers share the card
        settings |= {"QWEN_VL_KV_TOKENS": "400000", "SERVER_PREPARE_THREADS": "8"}
    command, own = servers.ours(port, folder, settings)
    log = tree.log("qwen_vl")
    environment = tree.environment | own
    stack.enter_context(servers.running(command, environment, port, log, READY, cwd=tree.root))
    cases = SMALL_CHAT_CASES if options.is_small else CHAT_CASES
    return {
        str(case): partial(one_case, port, case, APART * number)
        for number, case in enumerate(cases, start=1)
    }


def random_checkpoint(options: Options) -> Path:
    """Made once, in another process, so that this one holds no device memory."""
    folder = THREE.folder(is_toy=options.is_small)
    command = [sys.executable, "-m", "benchmarks.qwen_vl.random_weights", str(folder)]
    command += ["--device", options.device, *(["--toy"] if options.is_small else [])]
    subprocess.run(command, cwd=paths.ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder


def one_case(port: int, case: Case, first: int, pair: int) -> Mapping[str, float]:
    """New conversations for each pair, the same ones for both trees."""
    own = first + (pair + 1) * 1000
    answers = client.measure(replace(case), port, servers.MODEL, own, CASE_S)
    found = summed_up(answers)
    if found["failed"]:
        raise RuntimeError(f"{case}: {found['failed']} failed: {found['errors']}")
    return {
        "first token ms": found["ttft_ms_p50"],
        "ms per token": found["tpot_ms_mean"],
        "ms per request": 1000 / found["requests_per_s"],
    }


Family = Callable[[ExitStack, Tree, Options], dict[str, Run]]
ON_CPU: Mapping[str, Family] = {"echo": echo, "host": host, "stream": stream, "picture": picture}
ON_DEVICE: Mapping[str, Family] = {"flux": flux, "qwen_vl": qwen_vl}
FAMILIES: Mapping[str, Family] = {**ON_CPU, **ON_DEVICE}
