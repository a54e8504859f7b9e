"""Times the warm-ups that a start has left for later, each while requests run beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from benchmarks.common.clock import Clock
from predictors.serving.warm_plan import WarmPlan

Jobs = TypeVar("Jobs")


def warm_the_rest(
    plan: WarmPlan, clock: Clock, begin: Callable[[], Jobs], finish: Callable[[Jobs], object]
) -> list[dict[str, Any]]:
    """Warm what is left, one after the other. `begin` starts requests and steps them until all
    run; `finish` steps them to their end. Of each warm-up: its name, the seconds in which no step
    was made, and whether requests ran beside it: what ran out of memory is tried again alone."""
    found = []
    while not plan.is_over:
        names, done = _waiting(plan), plan.counts
        jobs = begin()
        seconds, _ = clock.seconds(partial(plan.warm_next, is_idle=False))
        finish(jobs)
        found.append({"shape": names[0], "seconds": seconds, "beside_requests": True})
        if plan.counts == done and _waiting(plan) == names:  # all of them are put off
            seconds, _ = clock.seconds(partial(plan.warm_next, is_idle=True))
            found[-1] |= {"seconds": seconds, "beside_requests": False}
    return found


def _waiting(plan: WarmPlan) -> list[str]:
    names: Any = plan.describe()["waiting"]
    return list(names)
