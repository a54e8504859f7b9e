"""Streaming clients of the colocated server, in a process of their own, from `go` to `stop`: each
sends a request, reads the answer to its end and sends the next. `python -m
benchmarks.colocated.crowd SHARE` is that process: SHARE is a `Share` as JSON.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

from benchmarks.qwen_vl.answers import Answered
from benchmarks.qwen_vl.client import Client, Share, openings
from predictors.cli.bench.intervals import quantile

SETTLE_S = 1.0  # before the first picture: all of them decode then
PATIENCE_S = 60.0


async def stream_until_stopped(share: Share) -> list[Answered]:
    """Keep `share.clients` connections busy from the line `go` to the line `stop` of stdin."""
    left, loop = openings(share), asyncio.get_running_loop()
    gc.freeze()  # no pause for what was prepared
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    answers: list[Answered] = []
    clients = []
    for _ in range(share.clients):
        made = partial(Client, share, left, answers)
        clients.append((await loop.create_connection(made, "127.0.0.1", share.port))[1])
    for client in clients:
        client.begin()
    await loop.run_in_executor(None, sys.stdin.readline)
    left.clear()
    for client in clients:
        client._transport.abort()
    await asyncio.gather(*(client.done for client in clients))
    return answers


class Crowd:
    """Streaming clients from `go` to `stop`."""

    def __init__(self, share: Share) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.colocated.crowd", json.dumps(asdict(share))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            raise RuntimeError("the clients' process died before it began")

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        time.sleep(SETTLE_S)

    def stop(self) -> list[Answered]:
        out, _ = self._process.communicate("stop\n", timeout=PATIENCE_S)
        return [Answered(**each) for each in json.loads(out)]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def crowd(share: Share) -> Iterator[Crowd]:
    """Clients that decode inside of the block."""
    clients = Crowd(share)
    try:
        clients.go()
        yield clients
    finally:
        clients.kill()


def gaps_within(answers: Sequence[Answered], spans: Sequence[tuple[float, float]]) -> list[float]:
    """Milliseconds between neighbouring texts of one answer that both came within a span."""
    return [
        1e3 * (second - first)
        for answer in answers
        for first, second in zip(answer.texts, answer.texts[1:], strict=False)
        if any(begin <= first and second <= end for begin, end in spans)
    ]


def times_between(
    answers: Sequence[Answered], spans: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Figures of the answers within the spans. Raises `RuntimeError` if there are too few."""
    refused = [a.error for a in answers if a.error and a.error[0].isdigit()]
    gaps = gaps_within(answers, spans)
    if len(gaps) < 2:
        raise RuntimeError(f"{len(gaps)} gaps between tokens; failures: {refused[:3]}")
    seconds = sum(end - begin for begin, end in spans)
    return {
        "gaps": len(gaps),
        "refused": len(refused),
        "itl_ms_p50": quantile(gaps, 0.5),
        "itl_ms_p99": quantile(gaps, 0.99),
        "itl_ms_max": max(gaps),
        "texts_per_s": len(gaps) / seconds,
    }


def main() -> None:
    answers = asyncio.run(stream_until_stopped(Share(**json.loads(sys.argv[1]))))
    print(json.dumps([asdict(answer) for answer in answers]))


if __name__ == "__main__":
    main()
