"""Checks one target with seeded changes of its stored inputs, in a process of its own.

    python -m tests.fuzz.mutation TARGET --seed 1 --cases 1000 --progress FILE

Case n depends on the seed, the target, n and the stored inputs alone. The number of the case that
runs is in FILE, so that a crash of the process tells its case.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

from tests.fuzz.findings import Finding, minimised
from tests.fuzz.http_streams import mutate
from tests.fuzz.seeds import stored
from tests.fuzz.targets import TARGETS, Fault

HANG_S = 60.0  # of one case, which takes about a millisecond; work is bounded by other tests
MAX_FINDINGS = 20


def make_input(target: str, seeds: Sequence[bytes], seed: int, case: int) -> bytes:
    random = Random(f"{seed}:{target}:{case}")
    raw = random.choice(seeds)
    if random.random() < 0.1:  # the start of one and the end of another
        other = random.choice(seeds)
        raw = raw[: random.randrange(len(raw) + 1)] + other[random.randrange(len(other) + 1) :]
    for _ in range(random.randint(0, 3)):
        raw = mutate(random, raw)
    return raw


def problem_of(target: str, raw: bytes) -> tuple[str, str] | None:
    """Kind and message of what is wrong with this input; None if nothing is."""
    try:
        TARGETS[target](raw)
    except Fault as fault:
        return "disagreement", str(fault)
    except (Exception, RecursionError) as error:  # noqa: BLE001 -- anything else is a finding
        return "error", f"{type(error).__name__}: {error}"
    return None


def run(target: str, seed: int, cases: int, progress: Path) -> list[Finding]:
    seeds, found, kinds = stored(target), [], set()
    with progress.open("wb", buffering=0) as file:
        for case in range(cases):
            os.pwrite(file.fileno(), b"%d\n" % case, 0)
            raw = make_input(target, seeds, seed, case)
            faulthandler.dump_traceback_later(HANG_S, exit=True, file=sys.__stderr__)
            problem = problem_of(target, raw)
            if problem is None:
                continue
            faulthandler.cancel_dump_traceback_later()
            kind = problem[0], problem[1][:24]
            if kind in kinds:
                continue
            kinds.add(kind)
            small = minimised(raw, lambda less, k=kind: _shows(target, less, k))  # type: ignore[misc]
            found.append(Finding(target, problem[0], seed, case, problem[1], small))
            if len(found) == MAX_FINDINGS:
                break
    faulthandler.cancel_dump_traceback_later()
    return found


def _shows(target: str, raw: bytes, kind: tuple[str, str]) -> bool:
    problem = problem_of(target, raw)
    return problem is not None and (problem[0], problem[1][:24]) == kind


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--cases", type=int, required=True)
    parser.add_argument("--progress", type=Path, required=True)
    options = parser.parse_args()
    found = run(options.target, options.seed, options.cases, options.progress)
    json.dump({"cases": options.cases, "findings": [f.as_json() for f in found]}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
