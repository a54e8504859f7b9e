"""SIGTERM while the server is loaded over REST, gRPC and streams: nothing accepted is lost.

A request counts as accepted if its answer had begun before the signal, or if it was sent 1.5 s
before a scrape that was answered before the signal, and not refused. It is lost if it is not
answered as a whole, or refused after all. One that was sent between then and the signal may be
refused, but not left without an answer. Later ones may be answered, refused (503, UNAVAILABLE) or
find the connection closed.
"""

from __future__ import annotations

import json
import random
import socket
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from tests.load.generator import DRAINING, Plan
from tests.load.records import FAILED, LATE, OK, REFUSED, UNANSWERED, UNCONNECTED, Record
from tests.load.runs import FOLDER, generating
from tests.load.target import Cores, Target

SURE_S = 1.5
GRACE_S = 300.0
"""Setting `server.drain_timeout_s`: more than the accepted work needs on any machine."""
SHORT_GRACE_S = 12.0
"""The same where callers do not read, who hold the server until it is over."""
CLOSING_S = 15.0
"""To close what is left behind the grace period: connections, engines, worker processes."""
SECONDS = 6.5
DEADLINES = ((1.0, 120.0),)
DRAINED = ("UNAVAILABLE", DRAINING)


@dataclass(frozen=True, slots=True)
class Case:
    seed: int
    rate: float
    with_non_readers: bool

    @property
    def grace_s(self) -> float:
        return SHORT_GRACE_S if self.with_non_readers else GRACE_S


def fate(record: Record, scrape_s: float, signal_s: float) -> str:
    """The outcome of one request. `scrape_s`, the begin of a scrape that was answered before the
    signal, and `signal_s` are on the clock of the records: a server that the machine lets wait has
    not read all that was sent before the signal."""
    is_refused = record.outcome == REFUSED
    is_answered = record.outcome in (OK, LATE)
    is_drained = is_refused and record.status in DRAINED
    has_begun = 0 < record.began_s < signal_s
    if has_begun or 0 < record.sent_s < scrape_s - SURE_S:
        if is_refused and not is_drained:
            return "refused before"
        return "answered" if is_answered else "lost"
    if 0 < record.sent_s < signal_s:
        return "answered" if is_answered else "refused at the signal" if is_refused else "lost"
    if is_answered:
        return "answered"
    is_closed = record.outcome == UNANSWERED and not record.began_s
    if is_refused or record.outcome == UNCONNECTED or is_closed:
        return "refused after"
    return "broken after" if record.outcome in (UNANSWERED, FAILED) else record.outcome


def non_readers(port: int, stack: ExitStack) -> None:
    """Two streams and two answers of many pictures whose callers never read."""
    chat = {"model": "qwen-vl", "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 2000, "ignore_eos": True, "stream": True}  # fmt: skip
    prompt = {"name": "prompt", "datatype": "BYTES", "shape": [8], "data": ["a red star"] * 8}
    draw = {"inputs": [prompt], "parameters": {"width": 256, "height": 256,
                                               "num_inference_steps": 1}}  # fmt: skip
    asked = [("/v1/chat/completions", chat), ("/v2/models/flux/infer", draw)] * 2
    for path, body in asked:
        sock = stack.enter_context(socket.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.connect(("127.0.0.1", port))
        text = json.dumps(body)
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        sock.sendall(f"{head}content-length: {len(text)}\r\n\r\n{text}".encode())


def repeat(case: Case, cores: Cores) -> dict[str, Any]:
    """One server, one signal."""
    rng = random.Random(case.seed)
    settings = {"PREDICTORS_SERVER_DRAIN_TIMEOUT_S": str(case.grace_s)}
    log = FOLDER / f"sigterm-{case.seed}.log"
    with Target(log, cores, settings) as target, ExitStack() as stack:
        plan = Plan(
            target.port, target.grpc_port, "mixed", case.seed, SECONDS, case.rate, compared=0.0,
            deadlines_s=DEADLINES, is_final=True,
        )  # fmt: skip
        with generating(plan, cores, f"sigterm-{case.seed}") as running:
            running.wait_started()
            if case.with_non_readers:
                non_readers(target.port, stack)
            time.sleep(rng.uniform(2.5, 4.5))  # the signal comes at a random moment of the load
            scrape_at = time.monotonic()
            in_flight = sum(
                target.sample(f"predictors_requests_{name}") for name in ("running", "waiting")
            )
            signal_at = time.monotonic()
            target.signal()
            try:
                code: int | None = target.process.wait(case.grace_s + CLOSING_S + 60)
            except subprocess.TimeoutExpired:
                code = None
            ended_s = time.monotonic() - signal_at
    at_s = scrape_at - running.started, signal_at - running.started
    return _told(case, running.records, at_s, ended_s, code, in_flight)


def _told(
    case: Case, records: Sequence[Record], at_s: tuple[float, float], ended_s: float,
    code: int | None, in_flight: float,
) -> dict[str, Any]:  # fmt: skip
    """`at_s`: scrape and signal, as in `fate`."""
    fates: dict[str, int] = {}
    lost = []
    for record in records:
        found = fate(record, *at_s)
        fates[found] = fates.get(found, 0) + 1
        if found in ("lost", "broken after"):
            shown = (record.kind, record.protocol, record.outcome, record.status)
            lost.append(f"{' '.join(shown)}, sent {record.sent_s - at_s[1]:+.2f} s")
    protocols = {each.protocol for each in records} | {
        "streams" for each in records if "stream" in each.kind
    }
    return {
        "seed": case.seed, "rate": case.rate, "with_non_readers": case.with_non_readers,
        "requests": len(records), "jobs_at_signal": int(in_flight), "fates": fates, "lost": lost,
        "protocols": sorted(protocols), "exit_code": code, "ended_s": round(ended_s, 1),
        "grace_s": case.grace_s,
        "is_met": not lost and code == 0 and ended_s <= case.grace_s + CLOSING_S,
    }  # fmt: skip


def cases(count: int, rate: float, seed: int) -> list[Case]:
    """Every fourth with callers that never read, at a fifth of the rate: what others have asked for
    must be done within the short grace period."""
    return [
        Case(seed + i, rate / 5 if i % 4 == 2 else rate, with_non_readers=i % 4 == 2)
        for i in range(count)
    ]


def all_cases(
    cores: Cores, count: int, rate: float, seed: int, at_once: int = 2
) -> list[dict[str, Any]]:
    """Servers two at a time: most of a repetition is their start."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda case: repeat(case, cores), cases(count, rate, seed)))
