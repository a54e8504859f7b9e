"""The cost of inspection under full load: engine steps before and during a profile, and the time of
a scrape.
"""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import server as servers
from benchmarks.common.run import PartialResults
from benchmarks.common.server import MODEL, Server
from benchmarks.qwen_vl import client
from benchmarks.qwen_vl.cases import Case
from benchmarks.qwen_vl.http import CASE_S, READY
from benchmarks.qwen_vl.options import QwenVLOptions
from predictors.cli.child import free_ports

LOAD, TOY_LOAD = Case(64, "text", 3200), Case(4, "text", 1200, 64)
STEPS = (8, 50)
SETTLED_S, UNDISTURBED_S = 3.0, 4.0
SCRAPES, SCRAPE_EVERY_S = 25, 0.2


def inspect(options: QwenVLOptions, results: PartialResults) -> None:
    """Our server with its admin port, all slots busy with text."""
    port, admin = free_ports(2)
    settings = {**options.server_settings(), "SERVER_ADMIN_PORT": str(admin)}
    start = servers.ours(port, Path(options.folder), settings)
    log = Path(options.folder).parent / "qwen-vl-inspect.log"
    with (
        servers.running(*start, port, log, READY["ours"]) as server,
        loaded(TOY_LOAD if options.is_toy else LOAD, server) as is_loaded,
    ):
        time.sleep(SETTLED_S)
        results.add("scrape_ms", scrapes(server))
        for steps in STEPS:
            results.add(f"profile of {steps}", profiled(server, admin, steps))
        results.add("was loaded throughout", is_loaded())


@contextmanager
def loaded(case: Case, server: Server) -> Iterator[Any]:
    """The case's clients run inside; yields a function, true while they do. Waits at the end."""
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(client.measure, case, server.port, MODEL, 0, CASE_S)
        yield lambda: not work.done()


def steps_done(server: Server) -> float:
    found = re.search(r"^predictors_engine_steps_total\{.*\} (\S+)$", server.get("/metrics"), re.M)
    assert found is not None
    return float(found[1])


def profiled(server: Server, admin: int, steps: int) -> dict[str, float]:
    """Engine steps per second before and during a profile of `steps`, and its seconds."""
    before_s, before = time.monotonic(), steps_done(server)
    threading.Event().wait(UNDISTURBED_S)
    began_s, began = time.monotonic(), steps_done(server)
    asked = urllib.request.Request(
        f"http://127.0.0.1:{admin}/debug/profile",
        data=json.dumps({"model": MODEL, "steps": steps}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked, timeout=90) as reply:
        profile = json.load(reply)
    ended_s, ended = time.monotonic(), steps_done(server)
    undisturbed = (began - before) / (began_s - before_s)
    meanwhile = (ended - began) / (ended_s - began_s)
    return {
        "steps": profile["steps"],
        "steps_per_s": undisturbed,
        "steps_per_s_meanwhile": meanwhile,
        "loss": 1 - meanwhile / undisturbed,
        "seconds": ended_s - began_s,
    }


def scrapes(server: Server) -> dict[str, float]:
    """Milliseconds of a whole GET of /metrics, over a connection of its own."""
    spent = []
    for _ in range(SCRAPES):
        began_s = time.perf_counter()
        server.get("/metrics")
        spent.append(1000 * (time.perf_counter() - began_s))
        time.sleep(SCRAPE_EVERY_S)
    return {"median": median(spent), "max": max(spent), "scrapes": SCRAPES}
