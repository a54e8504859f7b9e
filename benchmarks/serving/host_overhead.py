"""Host time per engine step while 4, 64 or 1,024 jobs wait.

    python -m benchmarks.serving.host_overhead [--rounds 15] [--turns 400]

The engine does nothing and has four slots; its own time is subtracted. The rest is the host: evict,
admit, step, metrics, locks and, in some scenarios, submission and cancellation. The loop is run on
this thread and time is its CPU time, so that no other thread's wake-ups count. Rounds alternate
between the three lengths of the queue; the figure is the median of the ratios within each round.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from benchmarks.common import paths
from predictors.serving.engine import Progress
from predictors.serving.host import EngineHost
from predictors.serving.job import Job
from predictors.settings import QueueSettings

WAITING = (4, 64, 1024)
SLOTS = 4
FAR_S = 600.0
RESULT = paths.RESULTS / "host_overhead.json"

CountJob = Job[int, int]


class NoOpEngine:
    """Holds each job for as many steps as its work says, and counts its own time."""

    slots = SLOTS
    spare_slots = 0

    def __init__(self) -> None:
        self._left: dict[CountJob, int] = {}
        self.own_ns = 0

    @property
    def busy(self) -> bool:
        return bool(self._left)

    @property
    def active(self) -> Sequence[CountJob]:
        return list(self._left)

    def load(self) -> None:
        pass

    def warm(self, progress: Progress) -> None:
        pass

    def validate(self, work: int) -> None:
        pass

    def admit(self, job: CountJob) -> bool:
        if len(self._left) == self.slots:
            return False
        self._left[job] = job.work
        return True

    def step(self, jobs: Sequence[CountJob]) -> None:
        started = time.thread_time_ns()
        for job in jobs:
            self._left[job] -= 1
            if self._left[job] == 0:
                del self._left[job]
                job.finish()
        self.own_ns += time.thread_time_ns() - started

    def evict(self, job: CountJob) -> None:
        self._left.pop(job, None)

    def close(self) -> None:
        self._left.clear()


class Bench:
    """A host with `SLOTS` running jobs and `waiting` more in its queue, all with deadlines."""

    def __init__(self, waiting: int, steps: int) -> None:
        self.engine = NoOpEngine()
        self.host: EngineHost[int, int] = EngineHost(
            "bench", self.engine, QueueSettings(capacity=2048)
        )
        self.host.loop.load_and_warm()
        self.dice = random.Random(0)
        self.queue = [self.submit(steps) for _ in range(SLOTS + waiting)][SLOTS:]
        self.host.loop.run_once()
        assert self.host.jobs.waiting == waiting

    def submit(self, steps: int) -> CountJob:
        # deadlines out of order, so that the heap has work to do
        deadline = time.monotonic() + FAR_S * (1 + self.dice.random())
        return self.host.submit([steps], request_id="r", deadline=deadline)[0]

    def timed(self, turns: int, between: Callable[[Bench], None]) -> float:
        """Microseconds of the host per turn, with `between`, without the engine itself."""
        self.engine.own_ns = 0
        gc.collect()
        gc.disable()
        started = time.thread_time_ns()
        for _ in range(turns):
            self.host.loop.run_once()
            between(self)
        total = time.thread_time_ns() - started
        gc.enable()
        return (total - self.engine.own_ns) / turns / 1e3


def nothing(bench: Bench) -> None:
    """No arrivals and no departures."""


def refill(bench: Bench) -> None:
    """As many arrivals as departures: four answers, four admissions, four submissions per step."""
    for _ in range(SLOTS):
        bench.submit(1)


def change_of_mind(bench: Bench) -> None:
    """A job in the middle of the queue is cancelled and another one submitted."""
    middle = len(bench.queue) // 2
    bench.queue[middle].cancel()
    bench.queue[middle] = bench.submit(10**9)


@dataclass(frozen=True)
class Scenario:
    """`between` runs between two steps; jobs live for `steps`."""

    name: str
    steps: int
    between: Callable[[Bench], None]


SCENARIOS = (
    Scenario("steady: nobody comes or goes", 10**9, nothing),
    Scenario("turnover: 4 answered, 4 admitted, 4 submitted per step", 1, refill),
    Scenario("cancel: 1 leaves mid-queue, 1 submitted per step", 10**9, change_of_mind),
)


def measure(rounds: int = 15, turns: int = 400) -> list[dict[str, object]]:
    return [measure_scenario(scenario, rounds, turns) for scenario in SCENARIOS]


def measure_scenario(scenario: Scenario, rounds: int, turns: int) -> dict[str, object]:
    """Microseconds per step by queue length, and the ratios to the shortest queue."""
    times: dict[int, list[float]] = {waiting: [] for waiting in WAITING}
    for number in range(rounds + 1):
        order = WAITING if number % 2 else WAITING[::-1]
        for waiting in order:
            bench = Bench(waiting, scenario.steps)
            bench.timed(turns // 4, scenario.between)
            spent = bench.timed(turns, scenario.between)
            if number > 0:  # the first round warms the interpreter
                times[waiting].append(spent)
    base = times[WAITING[0]]
    return {
        "scenario": scenario.name,
        "us_per_step": {str(n): round(statistics.median(t), 2) for n, t in times.items()},
        "ratio_to_4_waiting": {
            str(n): round(statistics.median(a / b for a, b in zip(t, base, strict=True)), 3)
            for n, t in times.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--turns", type=int, default=400)
    arguments = parser.parse_args()
    results = measure(arguments.rounds, arguments.turns)
    report = {
        "what": "host time per engine step with a no-op engine, microseconds, medians",
        "command": "python -m benchmarks.serving.host_overhead "
        f"--rounds {arguments.rounds} --turns {arguments.turns}",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "slots": SLOTS,
        "results": results,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"{'us per step with so many waiting':56}" + "".join(f"{n:>9}" for n in WAITING))
    for result in results:
        spent, ratios = result["us_per_step"], result["ratio_to_4_waiting"]
        assert isinstance(spent, dict)
        assert isinstance(ratios, dict)
        print(f"{result['scenario']:56}" + "".join(f"{spent[str(n)]:9.1f}" for n in WAITING))
        print(f"{'  ratio to 4 waiting':56}" + "".join(f"{ratios[str(n)]:9.2f}" for n in WAITING))


if __name__ == "__main__":
    main()
