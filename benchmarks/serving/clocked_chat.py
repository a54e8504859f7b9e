"""The host's part of serving chats: streaming clients of a server whose device is a clock.

    python -m benchmarks.serving.clocked_chat [--clients 64] [--requests 768] [--rounds 5] [--write]

Times are the clients', in processes of their own; CPU time is per step of all clients' tokens, from
/proc, of the event loop's thread and of the other threads of the server. `--set` passes settings as
`QWEN_VL_PREFILL_STEPS=1.4`. See `benchmarks.serving.clocked_server` for what is not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.common import paths
from benchmarks.common.server import MODEL, Server, running
from benchmarks.qwen_vl import client
from benchmarks.qwen_vl.answers import summed_up
from benchmarks.qwen_vl.cases import NUM_TOKENS, Case
from predictors.cli.child import free_ports

RESULT = paths.RESULTS / "clocked_chat.json"
CASE_S = 240.0
SETTINGS = {
    "QWEN_VL_SLOTS": "64", "QWEN_VL_DETERMINISTIC": "off", "QWEN_VL_PREFIX_CACHE": "on",
}  # fmt: skip
"""Those that a GPU's server has by default."""
FIGURES = (
    "requests_per_s", "tpot_ms_mean", "itl_ms_p50", "itl_ms_p99", "itl_ms_max", "ttft_ms_p50",
    "ttft_ms_p99",
)  # fmt: skip


def cpu_seconds(pid: int) -> dict[str, float]:
    """Of a process: the thread that began it, which runs the event loop, and all others."""
    found = {"loop": 0.0, "others": 0.0}
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        found["loop" if int(task.name) == pid else "others"] += ticks / os.sysconf("SC_CLK_TCK")
    return found


def one_round(case: Case, server: Server, first: int) -> dict[str, Any]:
    """The figures of one run of all clients; `first` numbers its conversations."""
    before = cpu_seconds(server.process.pid)
    found = summed_up(client.measure(case, server.port, MODEL, first, CASE_S))
    after = cpu_seconds(server.process.pid)
    steps = case.requests * case.tokens / case.clients
    cpu = {f"{name}_ms_per_step": 1e3 * (after[name] - before[name]) / steps for name in after}
    return {"failed": found["failed"], **{name: found[name] for name in FIGURES}, **cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    args = parser.parse_args()
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "benchmarks.serving.clocked_server", str(port)]
    command.append(str(paths.SHAPES_QWEN_VL))
    own = SETTINGS | dict(each.split("=", 1) for each in args.set)
    env = {f"PREDICTORS_{name}": value for name, value in own.items()} | {"OMP_NUM_THREADS": "1"}
    case = Case(args.clients, "text", args.requests, NUM_TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with running(command, env, port, log, "/v2/health/ready") as server:
            one_round(Case(args.clients, "text", args.clients, 16), server, 0)
            rounds = [one_round(case, server, 10**6 * (i + 1)) for i in range(args.rounds)]
    medians = {name: statistics.median(row[name] for row in rounds) for name in rounds[0]}
    print(json.dumps({name: round(value, 2) for name, value in medians.items()}))
    if args.write:
        machine = {"cores": os.cpu_count(), "python": platform.python_version()}
        machine["date"] = datetime.now(UTC).date().isoformat()
        found = {"machine": machine, "settings": own, "medians": medians, "rounds": rounds}
        RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
