"""The host's part of serving chats: streaming clients of a server whose device is a clock.

    python -m benchmarks.serving.clocked_chat [--clients 64] [--requests 768] [--rounds 5] [--write]

Times are the clients', in processes of their own; the rest is the server's own account of the last
round. `--probe` times the phases of its steps. `--set` passes settings as
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
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.common import paths
from benchmarks.common.host_time import HostWatch, host_figures
from benchmarks.common.journal import as_text
from benchmarks.common.server import MODEL, running
from benchmarks.qwen_vl import client, host_tables
from benchmarks.qwen_vl.answers import Answered, summed_up
from benchmarks.qwen_vl.cases import NUM_TOKENS, Case
from benchmarks.serving.step_report import probe_figures
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


def one_round(case: Case, host: HostWatch, first: int) -> tuple[dict[str, Any], list[Answered]]:
    """One run of all clients: its figures and answers. `first` numbers its conversations."""
    before = host.read()
    answers = client.measure(case, host.server.port, MODEL, first, CASE_S)
    found = summed_up(answers)
    return found | {"host": host_figures(before, host.read(), found["ttft_ms_mean"])}, answers


def medians_of(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of the clients' figures and of the threads' processor time."""

    def figures(row: Mapping[str, Any]) -> dict[str, float]:
        threads = row["host"]["processor_ms_per_step"].items()
        own = {f"{name}, ms per step": value for name, value in threads}
        return {"failed": row["failed"], **{name: row[name] for name in FIGURES}, **own}

    rows = [figures(row) for row in rounds]
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--probe", action="store_true", help="time the phases of the steps")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    args = parser.parse_args()
    port, admin_port = free_ports(2)
    command = [sys.executable, "-m", "benchmarks.serving.clocked_server", str(port)]
    command.append(str(paths.SHAPES_QWEN_VL))
    own = SETTINGS | dict(each.split("=", 1) for each in args.set)
    env = {f"PREDICTORS_{name}": value for name, value in own.items()} | {
        "OMP_NUM_THREADS": "1", "PREDICTORS_SERVER_ADMIN_PORT": str(admin_port),
    }  # fmt: skip
    case = Case(args.clients, "text", args.requests, NUM_TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        log, timed = Path(folder) / "server.log", Path(folder) / "steps.json"
        command += [str(timed)] if args.probe else []
        with running(command, env, port, log, "/v2/health/ready") as server:
            host = HostWatch(server, admin_port)
            one_round(Case(args.clients, "text", args.clients, 16), host, 0)
            runs = [one_round(case, host, 10**6 * (i + 1)) for i in range(args.rounds)]
        rounds = [figures for figures, _ in runs]
        shown: dict[str, Any] = {str(case): rounds[-1]}
        if args.probe:
            shown["probe"] = {str(case): probe_figures(json.loads(timed.read_text()), runs[-1][1])}
    medians = medians_of(rounds)
    print(f"{as_text(host_tables.TABLES, {'http': shown})}\n")
    print(json.dumps({name: round(value, 2) for name, value in medians.items()}))
    if args.write:
        machine = {"cores": os.cpu_count(), "python": platform.python_version()}
        machine["date"] = datetime.now(UTC).date().isoformat()
        found = {"machine": machine, "settings": own, "medians": medians, "rounds": rounds}
        RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
