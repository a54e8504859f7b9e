"""The host's part of serving chats, with 64 streaming clients on a server whose device is a clock.

    python -m benchmarks.serving.clocked [--case "64 x text"] [--set NAME=VALUE]

Prints requests per second, gaps and CPU seconds per thread.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from benchmarks.common import paths
from benchmarks.common import server as servers
from benchmarks.qwen_vl import client
from benchmarks.qwen_vl.answers import summed_up
from benchmarks.qwen_vl.cases import Case
from predictors.cli.child import free_ports


def cpu_of(pid: int) -> dict[str, float]:
    tick, found = os.sysconf("SC_CLK_TCK"), {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        raw = (task / "stat").read_text()
        name, rest = raw.rpartition(")")[0].split("(", 1)[1], raw.rpartition(")")[2].split()
        key = "loop" if int(task.name) == pid else f"t{int(task.name) - pid}"
        found[key] = found.get(key, 0.0) + (int(rest[11]) + int(rest[12])) / tick
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "benchmarks.serving.clocked_server", str(port)]
    command.append(str(paths.SHAPES_QWEN_VL))
    env = {"QWEN_VL_SLOTS": "64", "QWEN_VL_DETERMINISTIC": "off", "QWEN_VL_PREFIX_CACHE": "on"}
    env |= dict(each.split("=", 1) for each in args.set)
    env = {f"PREDICTORS_{k}": v for k, v in env.items()} | {"OMP_NUM_THREADS": "1"}
    log = Path("/tmp/field/clocked.log")
    with servers.running(command, env, port, log, "/v2/health/ready") as server:
        case = Case(args.clients, "text", args.requests)
        client.measure(Case(8, "text", 16, 16), port, "qwen-vl", 10**6, 200)
        for n in range(args.rounds):
            before = cpu_of(server.process.pid)
            found = summed_up(client.measure(case, port, "qwen-vl", 2 * 10**6 * (n + 1), 200))
            after = cpu_of(server.process.pid)
            keep = ("requests", "failed", "requests_per_s", "itl_ms_p50", "itl_ms_p99", "itl_ms_max")
            keep += ("tpot_ms_mean", "ttft_ms_p50", "ttft_ms_p99", "seconds", "prompt_tokens_mean")
            row = {k: round(found[k], 2) for k in keep} | {"errors": found["errors"]}
            steps = found["requests"] * 128 / args.clients
            used = {k: round(1e3 * (v - before.get(k, 0)) / steps, 3) for k, v in after.items()}
            row["cpu_ms_per_step"] = {k: v for k, v in used.items() if v > 0.02}
            print(json.dumps(row), flush=True)


main()
