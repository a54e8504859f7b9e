"""Memory, file descriptors and threads over many requests, sampled while the server is idle between
batches, so that work in progress is not taken for growth.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.load.generator import Plan
from tests.load.records import FAILED, OK, UNANSWERED, UNCONNECTED, Record
from tests.load.runs import run
from tests.load.target import TRIMMED_S, Held, Target

MIX = "small"
LEAVERS = 0.30
SLOW = 0.05
BATCH = 1000
CACHE_BYTES = 8 * 2**20
SETTINGS = {
    # every text and half of the pictures are new: caches of their usual size, 256 MiB each, would
    # still grow after 10,000 requests, as they should
    "PREDICTORS_FLUX_PROMPT_CACHE_BYTES": str(CACHE_BYTES),
    "PREDICTORS_QWEN_VL_EMBEDDING_CACHE_BYTES": str(CACHE_BYTES),
}
WARM_BATCHES = 2
"""Caches, heaps and thread pools have their size after these."""
MOST_MIB_PER_1000 = 4.0
"""Growth per 1,000 requests that counts as flat: 1 % of the server's memory over the run."""


FILLING = 250
"""Pictures, all unlike, that fill the cache of prepared ones (64 MiB, about 0.7 MiB each)."""
FILLING_RATE = 20.0


def fill(target: Target, seed: int) -> int:
    """Fill the caches that have no setting; how many requests were answered. The mix alone would
    take thousands of requests, and a cache that fills up is no growth."""
    plan = Plan(
        target.port, target.grpc_port, "fresh pictures", seed, 600.0, FILLING_RATE, most=FILLING,
        compared=0.0, deadlines_s=((1.0, 120.0),),
    )  # fmt: skip
    return sum(each.outcome == OK for each in run(plan, target.cores, "flat-fill"))


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of the least-squares line."""
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    if not spread:
        return 0.0
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread


def counts(records: Sequence[Record]) -> dict[str, Any]:
    """Counts that hold for every request of a run, whatever the machine."""
    outcomes = Counter(each.outcome for each in records)
    bad = [each for each in records if each.outcome in (UNANSWERED, FAILED, UNCONNECTED)]
    return {
        "requests": len(records),
        "outcomes": dict(outcomes),
        "unanswered": outcomes[UNANSWERED] + outcomes[UNCONNECTED],
        "failed": outcomes[FAILED],
        "compared": sum(each.is_right is not None for each in records),
        "wrong": sum(each.is_right is False for each in records),
        "protocols": dict(Counter(each.protocol for each in records)),
        "manners": dict(Counter(each.how for each in records if each.how)),
        "examples": [f"{each.kind} {each.how}: {each.status}" for each in bad[:10]],
    }


def flat(
    target: Target, requests: int, rate: float, solo: Path, seed: int, seconds: float = 0.0
) -> dict[str, Any]:
    """Batches of requests until there were `requests`, or `seconds` are over if that is later."""
    filled = fill(target, seed - 1)
    end = time.monotonic() + seconds
    records: list[Record] = []
    held: list[Held] = []
    batch = 0
    while len(records) < requests or time.monotonic() < end:
        plan = Plan(
            target.port, target.grpc_port, MIX, seed + batch, 600.0, rate, most=BATCH,
            leavers=LEAVERS, slow_readers=SLOW, slow_writers=SLOW, solo=str(solo),
        )  # fmt: skip
        records += run(plan, target.cores, "flat")
        held.append(target.settled(len(records), TRIMMED_S))
        batch += 1
    return {
        "mix": MIX, "rate": rate, "seed": seed, "leavers": LEAVERS, "settings": SETTINGS,
        "filled": filled,
        **counts(records), **growth(held),
    }  # fmt: skip


def growth(held: Sequence[Held]) -> dict[str, Any]:
    """Slopes per 1,000 requests after the warm batches, and whether all is flat. `at_s` of a sample
    is the number of requests until then."""
    kept = held[WARM_BATCHES:]
    xs = [each.at_s / 1000 for each in kept]
    own = slope(xs, [each.own_mib for each in kept])
    fds = [each.fds for each in kept]
    threads = [each.threads for each in kept]
    is_back = fds[-1] <= fds[0] + 2 and max(threads) <= threads[0] + 2
    return {
        "held": [asdict(each) for each in held],
        "rss_mib_per_1000": round(slope(xs, [each.rss_mib for each in kept]), 2),
        "own_mib_per_1000": round(own, 2),
        "fds": [fds[0], fds[-1]],
        "threads": [threads[0], threads[-1]],
        "is_flat": own <= MOST_MIB_PER_1000 and is_back,
    }  # fmt: skip
