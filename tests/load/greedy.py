"""Two callers on one engine: what a greedy one leaves to another, and what two equal ones get.

Callers are told apart by their addresses, 127.0.0.2 and 127.0.0.3.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from predictors.cli.bench.intervals import quantile
from tests.load.generator import Plan
from tests.load.records import OK, REFUSED, Record
from tests.load.runs import generating, run
from tests.load.target import Target

GREEDY, OTHER = "127.0.0.2", "127.0.0.3"
DEADLINES = ((1.0, 600.0),)
MOST_TIMES = 2.2
LEAST_SHARE = 0.45
HEAD_START_S = 2.0


@dataclass(frozen=True, slots=True)
class Greed:
    room: str
    what: str
    """Mix of the greedy caller."""
    callers: int
    """Its connections."""
    other: str
    """Mix of the other one, which asks for one thing at a time."""


GREEDS = (
    Greed("flux", "large pictures", 100, "one picture"),
    Greed("flux", "60 rows", 1, "one picture"),
    Greed("qwen-vl", "long chats", 100, "one chat"),
    Greed("qwen-vl", "n=16", 2, "one chat"),
)
EQUALS = (
    # (room, mix, connections of one, of the other)
    ("flux", "one picture", 16, 16),
    ("flux", "one picture", 48, 8),
    # short ones: the window has to be many answers long
    ("qwen-vl", "chats", 16, 16),
    ("qwen-vl", "chats", 48, 8),
)


def _plan(target: Target, mix: str, seconds: float, callers: int, source: str, seed: int) -> Plan:
    return Plan(
        target.port, target.grpc_port, mix, seed, seconds, callers=callers, source=source,
        compared=0.0, fresh=0.0, deadlines_s=DEADLINES,
    )  # fmt: skip


def _answered(records: list[Record]) -> list[float]:
    return [each.ended_s - each.due_s for each in records if each.outcome == OK]


def _step_s(target: Target, room: str) -> tuple[float, float]:
    name = "predictors_step_duration_seconds"
    return target.sample(f"{name}_sum", model=room), target.sample(f"{name}_count", model=room)


def greed(target: Target, case: Greed, seconds: float, seed: int) -> dict[str, Any]:
    """The other caller's times alone and beside the greedy one, and the mean step of the greedy one
    alone, which the other has to wait for when it comes."""
    other = _plan(target, case.other, seconds, 1, OTHER, seed)
    alone = run(other, target.cores, "greedy-alone")
    long = seconds + 3 * HEAD_START_S
    greedy = _plan(target, case.what, long, case.callers, GREEDY, seed + 1)
    with generating(greedy, target.cores, "greedy-a") as running:
        running.wait_started()
        before = _step_s(target, case.room)
        time.sleep(HEAD_START_S)  # part of the case: the greedy caller was there before
        after = _step_s(target, case.room)
        beside = run(replace(other, seed=seed + 2), target.cores, "greedy-b")
        running.end()  # its connections end, and so do its jobs
    target.wait_idle()
    step_ms = 1000 * (after[0] - before[0]) / max(1, after[1] - before[1])
    found = {"alone": _answered(alone), "beside": _answered(beside)}
    shown = {
        f"{name}_{label}_ms": _ms(values, share)
        for name, values in found.items()
        for label, share in (("p50", 0.5), ("p95", 0.95))
    }
    p95, alone_p95 = shown["beside_p95_ms"], shown["alone_p95_ms"]
    times = None
    if p95 is not None and alone_p95:
        times = round((p95 - step_ms) / alone_p95, 2)
    return {
        "room": case.room, "greedy": case.what, "connections": case.callers, "seed": seed,
        "seconds": seconds, **shown, "step_ms": round(step_ms, 1), "times": times,
        "asked_beside": len(beside), "answered_beside": len(found["beside"]),
        "refused": sum(each.outcome == REFUSED for each in beside),
        "is_met": times is not None and times <= MOST_TIMES
        and len(found["beside"]) == len(beside),
    }  # fmt: skip


def equals(
    target: Target, room: str, mix: str, first: int, second: int, seconds: float, seed: int
) -> dict[str, Any]:
    """The shares of two callers of equal weight that ask for the same, all the time."""
    plans = [
        _plan(target, mix, seconds, callers, source, seed + i)
        for i, (callers, source) in enumerate(((first, GREEDY), (second, OTHER)))
    ]
    with (
        generating(plans[0], target.cores, "equal-a") as one,
        generating(plans[1], target.cores, "equal-b") as two,
    ):
        pass
    # while both ask
    begin = max(one.started, two.started) + seconds / 5
    end = min(one.started, two.started) + seconds
    work = [
        sum(
            record.work
            for record in each.records
            if record.outcome == OK and begin <= each.started + record.ended_s < end
        )
        for each in (one, two)
    ]
    target.wait_idle()
    total = sum(work)
    shares = [round(each / total, 3) if total else 0.0 for each in work]
    refused = [sum(r.outcome == REFUSED for r in each.records) for each in (one, two)]
    return {"room": room, "mix": mix, "connections": [first, second], "shares": shares,
            "refused": refused, "seconds": seconds, "seed": seed,
            "is_met": min(shares) >= LEAST_SHARE}  # fmt: skip


def _ms(values: list[float], share: float) -> float | None:
    found = quantile(values, share)
    return None if found is None else round(1000 * found, 1)


def all_cases(target: Target, seconds: float, seed: int) -> dict[str, Any]:
    return {
        "greedy": [greed(target, case, seconds, seed + 10 * i) for i, case in enumerate(GREEDS)],
        "equals": [
            equals(target, *case, seconds, seed + 100 + 10 * i) for i, case in enumerate(EQUALS)
        ],
    }
