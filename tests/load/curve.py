"""The load curve of a mix: its capacity, then 50 to 300 % of it in an open loop, with health and
metrics asked for meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tests.load.generator import Plan
from tests.load.prober import Probing
from tests.load.records import summary
from tests.load.runs import LATE_MS, generating, run
from tests.load.target import Held, Target, Watching

SHARES = (0.5, 0.8, 1.0, 1.5, 3.0)
CALLERS = 32
"""Of the closed loop that finds the capacity: enough to fill all slots, too few to fill the
queue."""
LEAVERS = 0.05
SLOW = 0.03


def capacity(target: Target, mix: str, seconds: float, seed: int) -> dict[str, Any]:
    """Requests per second that callers get who wait for each answer."""
    plan = Plan(target.port, target.grpc_port, mix, seed, seconds, callers=CALLERS, compared=0.0)
    records = run(plan, target.cores, f"capacity-{mix}")
    found = summary(records, seconds / 4, seconds)
    return {"mix": mix, "callers": CALLERS, "seconds": seconds, "seed": seed, **found.plain()}


def point(
    target: Target, mix: str, share: float, rate: float, seconds: float, solo: Path, seed: int,
    **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """One open-loop run at `rate` arrivals per second; its first quarter, in which the queue fills,
    counts for no rate."""
    plan = Plan(
        target.port, target.grpc_port, mix, seed, seconds, rate, leavers=LEAVERS,
        slow_readers=SLOW, slow_writers=SLOW, solo=str(solo),
    )  # fmt: skip
    plan = replace(plan, **changes)
    name = f"{mix}-{round(100 * share)}"
    with (
        Watching(target) as watching,
        Probing(target.port, target.cores) as probing,
        generating(plan, target.cores, name) as running,
    ):
        pass
    found = summary(running.records, seconds / 4, seconds)
    lag = found.lag_p99_ms
    target.wait_idle()
    return {
        "mix": mix, "share": share, "rate": round(rate, 2), "seconds": seconds, "seed": seed,
        "is_valid": lag is not None and lag <= LATE_MS,
        "generator_cpu": round(running.cpu_s / seconds, 3),
        **found.plain(),
        "probes": probing.found,
        "held": [asdict(each) for each in watching.samples],
        "after": asdict(Held.of(target.tree)),
    }  # fmt: skip


def curve(
    target: Target,
    mix: str,
    seconds: float,
    solo: Path,
    seed: int,
    shares: Sequence[float] = SHARES,
) -> dict[str, Any]:
    """Capacity and all points of a mix, with the share of the best goodput that each one keeps."""
    full = capacity(target, mix, seconds, seed)
    points = [
        # below the capacity all is answered: there is less to measure
        point(target, mix, share, share * full["good"], seconds / (1 + (share < 1)), solo, seed + i)
        for i, share in enumerate(shares, start=1)
    ]
    for unit in ("good", "good_work"):
        best = max(each[unit] for each in points)
        for each in points:
            each[f"kept_{unit}"] = round(each[unit] / best, 3) if best else 0.0
    return {"capacity": full, "points": points}
