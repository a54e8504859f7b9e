"""Warm-ups after a start: each is timed once, and what ran out of memory once more, alone."""

from __future__ import annotations

import torch

from benchmarks.common.clock import Clock
from benchmarks.common.later_warm_ups import warm_the_rest
from predictors.serving.warm_plan import PlannedShape, WarmPlan


def test_a_shape_that_ran_out_of_memory_is_timed_alone() -> None:
    tries: list[str] = []

    def run_out() -> None:
        tries.append("large")
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    shapes = [PlannedShape("large", run_out), PlannedShape("small", lambda: None)]
    plan = WarmPlan("m", shapes, lambda *_: None, lambda: None)
    beside: list[int] = []
    found = warm_the_rest(plan, Clock(torch.device("cpu")), lambda: 3, beside.append)
    assert plan.is_over
    assert plan.describe()["failed"] == []
    assert [(each["shape"], each["beside_requests"]) for each in found] == [
        ("large", True), ("small", True), ("large", False),
    ]  # fmt: skip
    assert tries == ["large", "large"]
    assert beside == [3, 3, 3]
