"""The cases through a server with streaming clients, ours and vLLM's alike, and a soak test. Times
are the clients'.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.common import server as servers
from benchmarks.common.energy import first_card, joules_of
from benchmarks.common.host_time import HostWatch, host_figures
from benchmarks.common.run import PartialResults
from benchmarks.common.server import MODEL, Server
from benchmarks.qwen_vl import client
from benchmarks.qwen_vl.answers import Answered, energy_of, summed_up
from benchmarks.qwen_vl.cases import Case
from benchmarks.qwen_vl.options import QwenVLOptions
from benchmarks.serving.step_probe import probed
from benchmarks.serving.step_report import probe_figures
from predictors.cli.child import free_ports

CASES = (
    Case(1, "1024x1024", 16),
    Case(1, "448x448", 16),
    Case(1, "text", 16),
    Case(1, "same 1024x1024", 16),
    Case(64, "1024x1024", 320),
    Case(64, "448x448", 512),
    Case(64, "text", 768),
    Case(1, "1280x720", 12),
    Case(1, "4 1024x1024", 8),
    Case(1, "turns 1024x1024", 18),
    Case(8, "1024x1024", 64),
    Case(32, "1024x1024", 192),
    Case(8, "text", 128),
    Case(32, "text", 384),
    Case(64, "1280x720", 256),
    Case(8, "448x448", 96),
    Case(32, "448x448", 256),
    Case(64, "same 1024x1024", 512),
    Case(64, "turns 448x448", 384),
    Case(64, "4 448x448", 192),
    Case(1, "grammar text", 48),
    Case(64, "grammar text", 768),
)
"""The goals' first."""
TOY_CASES = (
    Case(1, "text", 3, 8),
    Case(4, "64x64", 8, 8),
    Case(1, "2 64x48", 2, 8),
    Case(2, "same 64x64", 4, 8),
    Case(2, "turns 64x64", 6, 8),
    Case(2, "grammar text", 6, 8),
)
APART = 1_000_000
"""Between the numbers of two cases' conversations: no case may find another's pictures kept."""
WARM = APART // 2
WARM_TOKENS = 16
CASE_S = 240.0
SOAK_ROUNDS = 5
SOAK = (Case(64, "448x448", 200, 16), Case(64, "text", 200, 16))
TOY_SOAK = (Case(4, "64x64", 8, 4), Case(4, "text", 8, 4))
READY = {"ours": "/v2/health/ready", "vllm": "/health"}


def chosen(options: QwenVLOptions) -> list[Case]:
    cases = TOY_CASES if options.is_toy else CASES
    names = {name.strip() for name in options.cases.split(",") if name.strip()}
    return [case for case in cases if not names or str(case) in names]


def http(options: QwenVLOptions, results: PartialResults) -> None:
    port, admin_port = free_ports(2)
    settings = options.server_settings() | {"SERVER_ADMIN_PORT": str(admin_port)}
    command, env = servers.ours(port, Path(options.folder), settings)
    log = _log(options, "ours")
    timed = log.with_suffix(".steps.json")
    if options.has_probe:
        command = probed(command, timed)
    with servers.running(command, env, port, log, READY["ours"]) as server:
        host = HostWatch(server, admin_port)
        results.add("ready_s", server.ready_s)
        # with `prefill_steps` the times of passes that the server's start has measured
        results.add("step_budget", host.debug()["models"][MODEL]["step_budget"])
        before = server.counters()
        answered = measure(options, server, results, host)
        results.add("counters", {"at ready": before, "at the end": server.counters()})
        results.add("host_gib", server.host_bytes() / 2**30)
    if options.has_probe:
        found = json.loads(timed.read_text())
        probes = {case: probe_figures(found, answers) for case, answers in answered.items()}
        results.add("probe", probes)


def vllm(options: QwenVLOptions, results: PartialResults) -> None:
    """Every case through vLLM's server, where it is installed."""
    if not servers.has_vllm():
        results.add("was not", "vllm cannot be imported here")
        return
    (port,) = free_ports(1)
    start = servers.vllm(port, Path(options.folder), options.slots)
    with servers.running(*start, port, _log(options, "vllm"), READY["vllm"]) as server:
        results.add("version", version("vllm"))
        results.add("ready_s", server.ready_s)
        measure(options, server, results)


def measure(
    options: QwenVLOptions, server: Server, results: PartialResults, host: HostWatch | None = None
) -> dict[str, list[Answered]]:
    """Every case; returns the answers of those that were measured."""
    cases = enumerate(chosen(options), start=1)
    found = {
        str(case): one_case(case, APART * number, server, results, host) for number, case in cases
    }
    return {name: answers for name, answers in found.items() if answers}


def one_case(
    case: Case, first: int, server: Server, results: PartialResults, host: HostWatch | None
) -> list[Answered]:
    """Warm up with other pictures, then measure; with `host` also the host's time. A failure is
    recorded; the next cases run. Returns the answers."""
    warm = replace(case, requests=min(case.clients, 8) * case.turns, tokens=WARM_TOKENS)
    try:
        client.measure(warm, server.port, MODEL, first + WARM, CASE_S)
        before = None if host is None else host.read()
        joules, answers = joules_of(
            lambda: client.measure(case, server.port, MODEL, first, CASE_S), first_card()
        )
    except Exception as error:  # noqa: BLE001 - the next case may still work
        results.add(str(case), {"case": asdict(case), "failed": 0, "errors": [repr(error)]})
        return []
    figures = {"case": asdict(case), **summed_up(answers)}
    if host is not None and before is not None and "ttft_ms_mean" in figures:
        figures["host"] = host_figures(before, host.read(), figures["ttft_ms_mean"])
    results.add(str(case), {**figures, **energy_of(answers, joules)})
    return answers


def soak(options: QwenVLOptions, results: PartialResults) -> None:
    """Some 2,000 requests: memory after every round, and what was compiled or captured."""
    (port,) = free_ports(1)
    start = servers.ours(port, Path(options.folder), options.server_settings())
    with servers.running(*start, port, _log(options, "soak"), READY["ours"]) as server:
        rounds = [_memory(server, 0, 0)]
        for turn in range(SOAK_ROUNDS):
            asked, failed = rounds[-1]["requests"], rounds[-1]["failed"]
            for case in TOY_SOAK if options.is_toy else SOAK:
                answers = client.measure(case, server.port, MODEL, APART * (turn + 1), CASE_S)
                asked += len(answers)
                failed += sum(answer.error is not None for answer in answers)
            rounds.append(_memory(server, asked, failed))
            results.found["rounds"] = rounds
            results.add("last round", rounds[-1])
        results.add("counters", server.counters())


def _memory(server: Server, requests: int, failed: int) -> dict[str, Any]:
    return {
        "requests": requests,
        "failed": failed,
        "host_bytes": server.host_bytes(),
        "device_bytes": server.device_bytes(),
    }


def _log(options: QwenVLOptions, name: str) -> Path:
    return Path(options.folder).parent / f"qwen-vl-{name}.log"
