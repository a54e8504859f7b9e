"""A start with `qwen_vl.warm` all or minimal: seconds until ready, and of each pass that is warmed
beside answers after it, memory, and whether the answers are those of later.

`python -m benchmarks.qwen_vl.warm minimal`, and `all` in another process, print one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import paths
from benchmarks.common.later_warm_ups import warm_the_rest
from benchmarks.qwen_vl import random_weights
from benchmarks.qwen_vl.options import QwenVLOptions
from benchmarks.qwen_vl.ours import Ours, Timed, captured
from benchmarks.qwen_vl.sizes import SIZES, THREE

ROWS, TOKENS = 4, 32
"""Answers beside each pass that is warmed."""
SETTINGS = {"QWEN_VL_DETERMINISTIC": "off"}
"""As on a card by default: on the CPU little would be left for later."""


def later_passes(one: Ours) -> list[dict[str, Any]]:
    """Warm what is left, each pass while answers are decoded. Of each also the answers beside it
    that were others than those of a warm model, asked alone."""
    works = [one.prepare(f"question number {i}", tokens=TOKENS) for i in range(ROWS)]
    answers: list[list[list[int]]] = []

    def begin() -> list[Timed]:
        jobs = [Timed(work) for work in works]
        one.admit(jobs)
        for _ in range(TOKENS // 2):
            one.engine.step(one.engine.active)
        return jobs

    def finish(jobs: list[Timed]) -> None:
        while one.engine.busy:
            one.engine.step(one.engine.active)
        answers.append([job.tokens for job in jobs])

    plan = one.engine.plan
    found = [] if plan is None else warm_the_rest(plan, one.clock, begin, finish)
    alone = [one.answers([work])[0].tokens for work in works]
    for each, tokens in zip(found, answers, strict=True):
        each["others"] = sum(a != b for a, b in zip(tokens, alone, strict=True))
    return found


def measure(options: QwenVLOptions, warm: str) -> dict[str, Any]:
    began = time.perf_counter()
    one = Ours(options, QWEN_VL_WARM=warm)
    ready_s, is_cuda = time.perf_counter() - began, options.device.startswith("cuda")
    at_ready = torch.cuda.memory_reserved() if is_cuda else None
    found: dict[str, Any] = {
        "warm": warm,
        "load_s": one.load_s,
        "warm_s": one.warm_s,
        "until_ready_s": ready_s,
        "captured": captured(),
        "passes_at_ready": len(one.engine.describe()["warm_shapes"]),  # type: ignore[arg-type]
        "later": later_passes(one),
    }
    told = one.engine.describe()
    found["failed"] = None if one.engine.plan is None else one.engine.plan.describe()["failed"]
    found["unplanned"] = told["recompilations_after_ready"], told["captures_after_ready"]
    found["reserved_bytes"] = at_ready, torch.cuda.memory_reserved() if is_cuda else None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("warm", choices=("all", "minimal"))
    parser.add_argument("--size", choices=SIZES, default=THREE.name)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()
    folder = asked.folder or paths.SCRATCH / f"warm-{asked.size}{'-toy' * asked.toy}"
    given = str(folder), asked.device, asked.toy, asked.slots
    options = QwenVLOptions(*given, settings=SETTINGS, size=asked.size)
    random_weights.make(folder, options.config, torch.device(asked.device))
    print(json.dumps(measure(options, asked.warm), indent=1))


if __name__ == "__main__":
    main()
