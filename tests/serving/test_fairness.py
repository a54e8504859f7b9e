"""Callers share an engine by weight in engine seconds, in admission and in steps.

The hosts run without threads; the engine advances a scripted clock by what its steps take.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.serving.accounts import Caller
from predictors.serving.host import EngineHost
from predictors.serving.job import Job
from predictors.settings import QueueSettings
from tests.fakes import ScriptedClock, ScriptedEngine, Task
from tests.serving.conftest import submit

NUMBERS = count(1)
A, B, D = Caller("a"), Caller("b"), Caller("d")


class Bench:
    """A host, an engine whose steps take scripted seconds, and the seconds charged by caller."""

    def __init__(
        self, slots: int = 1, spare_slots: int = 0, budget: int | None = None, **settings: float
    ) -> None:
        self.clock = ScriptedClock()
        self.engine = ScriptedEngine(
            slots, spare_slots=spare_slots, budget=budget, clock=self.clock, gated=False
        )
        self.host: EngineHost[Task, str] = EngineHost(
            f"fair-{next(NUMBERS)}",
            self.engine,
            QueueSettings(**{"capacity": 512, **settings}),  # type: ignore[arg-type]
            clock=self.clock,
        )
        self.host.loop.load_and_warm()
        self.jobs: list[Job[Task, str]] = []
        self.names = count()

    def submit(
        self, caller: Caller, *, jobs: int = 1, steps: int = 1, step_s: float = 1.0, size: int = 1
    ) -> list[Job[Task, str]]:
        tasks = [Task(f"{caller.name}{next(self.names)}", steps, size, step_s) for _ in range(jobs)]
        accepted = submit(self.host, *tasks, caller=caller)
        self.jobs += accepted
        return accepted

    def run(self, rounds: int = 1) -> None:
        for _ in range(rounds):
            self.host.loop.run_once()

    def seconds(self) -> Counter[str]:
        """Engine seconds charged so far, by caller."""
        total: Counter[str] = Counter()
        for job in self.jobs:
            total[job.caller.name] += job.used_s  # type: ignore[assignment]
        return total

    def admitted(self) -> str:
        """First letters of the tasks in order of admission."""
        calls = [call for call in self.engine.calls if call[0] == "admit"]
        return "".join(name[0] for _, name in calls)

    def running(self) -> Counter[str]:
        return Counter(job.caller.name for job in self.host.jobs.running)


WORK = st.tuples(st.integers(1, 4), st.sampled_from([0.1, 1.0, 3.0]))


@given(
    st.integers(1, 4),
    st.integers(0, 4),
    st.tuples(st.sampled_from([1.0, 2.0, 3.0]), st.sampled_from([1.0, 2.0, 3.0])),
    st.lists(WORK, min_size=1, max_size=12),
    st.lists(WORK, min_size=1, max_size=12),
    st.integers(1, 40),
)
def test_two_backlogged_callers_get_engine_seconds_by_weight(
    slots: int,
    spare: int,
    weights: tuple[float, float],
    work_a: Sequence[tuple[int, float]],
    work_b: Sequence[tuple[int, float]],
    head_start: int,
) -> None:
    bench = Bench(slots, spare)
    callers = [Caller("a", weights[0]), Caller("b", weights[1])]
    works = [work_a, work_b]
    made = [0, 0]
    largest = max(steps * step_s for steps, step_s in [*work_a, *work_b])

    def top_up(i: int) -> None:
        waiting = sum(j.admitted_at is None for j in bench.jobs if j.caller is callers[i])
        for _ in range(slots + spare + 1 - waiting):
            steps, step_s = works[i][made[i] % len(works[i])]
            bench.submit(callers[i], steps=steps, step_s=step_s)
            made[i] += 1

    for _ in range(head_start):  # the first is alone, which must not count against it later
        top_up(0)
        bench.run()
    before = bench.seconds()
    ahead: list[float] = []
    for _ in range(60):
        top_up(0)
        top_up(1)
        bench.run()
        used = bench.seconds()
        used.subtract(before)
        ahead.append(used["a"] / weights[0] - used["b"] / weights[1])
    bench.host.stop()
    # Jin, Chase, Kaur: (D + 1) times the largest cost of each; costs are estimated here: twice that
    bound = 2 * (slots + spare + 1) * largest * sum(1 / weight for weight in weights)
    assert max(ahead) - min(ahead) <= bound


@given(st.integers(1, 4), st.integers(1, 5), st.lists(WORK, min_size=1, max_size=8), st.booleans())
def test_a_newcomer_waits_for_no_backlog_of_others(
    slots: int, greedy: int, works: list[tuple[int, float]], has_run: bool
) -> None:
    """Its job starts within one job of each other caller and slot, however many they have waiting,
    and also after it was away."""
    bench = Bench(slots)
    if has_run:
        bench.submit(B)
        bench.run()
    for i in range(60 * greedy):
        steps, step_s = works[i % len(works)]
        bench.submit(Caller(f"g{i % greedy}"), steps=steps, step_s=step_s)
    bench.run(17)
    [late] = bench.submit(B)
    admitted = len(bench.admitted())
    while late.admitted_at is None:
        bench.run()
    bench.host.stop()
    assert len(bench.admitted()) - admitted <= slots + greedy + 1


def test_a_caller_with_a_hundred_jobs_does_not_make_another_wait_for_them() -> None:
    bench = Bench(slots=1)
    bench.submit(A, jobs=100)
    bench.run(10)
    [late] = bench.submit(B)
    bench.run(2)
    assert late.done


def test_equal_callers_take_turns() -> None:
    bench = Bench(slots=1)
    bench.submit(A, jobs=6)
    bench.submit(B, jobs=3)
    bench.submit(D, jobs=3)
    bench.run(12)
    assert bench.admitted() == "abdabdabdaaa"


def test_one_pass_does_not_give_all_slots_to_who_has_used_least() -> None:
    bench = Bench(slots=4)
    bench.submit(A, jobs=8, steps=9)
    bench.submit(B, jobs=8, steps=9)
    bench.run()
    assert bench.running() == {"a": 2, "b": 2}


def test_slots_go_by_weight() -> None:
    bench = Bench(slots=4)
    bench.submit(Caller("a", weight=3.0), jobs=8, steps=9)
    bench.submit(Caller("b", weight=1.0), jobs=8, steps=9)
    bench.run()
    assert bench.running() == {"a": 3, "b": 1}


def test_dear_jobs_come_less_often() -> None:
    bench = Bench(slots=1)
    bench.submit(A, jobs=40, step_s=4.0)
    bench.submit(B, jobs=40, step_s=1.0)
    bench.run(40)
    used = bench.seconds()
    assert abs(used["a"] - used["b"]) <= 8.0


def test_absence_earns_nothing() -> None:
    bench = Bench(slots=1)
    bench.submit(B)
    bench.run()
    bench.submit(A, jobs=60)
    bench.run(20)  # b is away while a uses 20 s
    bench.submit(B, jobs=20)
    bench.run(20)
    used = bench.seconds()
    assert used["a"] - 20 == pytest.approx(used["b"] - 1, abs=2.0)


def test_a_trickle_of_small_jobs_earns_nothing_either() -> None:
    bench = Bench(slots=1)
    bench.submit(A, jobs=400)
    for _ in range(40):  # b always has a job there, and takes a tenth of the engine
        bench.submit(B, step_s=0.1)
        bench.run(2)
    before = bench.seconds()
    bench.submit(B, jobs=40)
    bench.run(20)
    used = bench.seconds()
    assert abs((used["a"] - before["a"]) - (used["b"] - before["b"])) <= 3.0


def test_leaving_and_coming_back_does_not_pay_a_debt() -> None:
    bench = Bench(slots=1)
    bench.submit(B, jobs=40)
    bench.run(2)
    for _ in range(4):  # a asks for one dear job at a time, and is away in between
        [dear] = bench.submit(A, step_s=5.0)
        while not dear.done:
            bench.run()
    used = bench.seconds()
    assert used["b"] - 2 >= used["a"] - 2 * 5.0


def test_a_failed_estimate_is_corrected_by_what_is_charged() -> None:
    bench = Bench(slots=1)
    bench.submit(A, jobs=3, steps=10)  # each is expected to take 1 s, and takes 10
    bench.submit(B, jobs=30)
    bench.run(40)
    assert bench.admitted()[:14] == "a" + "b" * 10 + "a" + "bb"


# -- spare slots -----------------------------------------------------------------------------------


def test_a_newcomer_gets_a_spare_slot_while_another_holds_all() -> None:
    bench = Bench(slots=4, spare_slots=2)
    bench.submit(A, jobs=9, steps=99)
    bench.run()
    assert bench.running() == {"a": 4}
    bench.submit(B, jobs=9, steps=99)
    bench.run(3)
    assert bench.running() == {"a": 4, "b": 2}


def test_a_caller_that_is_alone_gets_no_spare_slot() -> None:
    bench = Bench(slots=2, spare_slots=2)
    bench.submit(A, jobs=9, steps=9)
    bench.run(3)
    assert bench.running() == {"a": 2}


def test_spare_slots_are_not_for_who_holds_its_share() -> None:
    bench = Bench(slots=4, spare_slots=4)
    bench.submit(A, jobs=9, steps=99)
    bench.submit(B, jobs=9, steps=99)
    bench.run(3)
    assert bench.running() == {"a": 2, "b": 2}
    bench.submit(D, jobs=9, steps=99)
    bench.run(3)
    assert bench.running() == {"a": 2, "b": 2, "d": 2}  # a third of four slots is one and a bit


def test_steps_are_shared_with_the_job_on_a_spare_slot() -> None:
    bench = Bench(slots=1, spare_slots=1)
    [long] = bench.submit(A, steps=99)
    bench.run(10)
    [short] = bench.submit(B, steps=4)
    bench.run(9)
    assert short.done
    assert not long.done
    assert all(len(step) == 1 for step in bench.engine.steps)


def test_a_slot_that_is_left_goes_to_who_holds_less() -> None:
    bench = Bench(slots=2, spare_slots=0)
    bench.submit(A, jobs=2, steps=2)
    bench.submit(A, jobs=9, steps=20)
    bench.run()
    bench.submit(B, jobs=9, steps=20)
    bench.run(2)
    assert bench.running() == {"a": 1, "b": 1}


# -- the skip window and the overdue head ----------------------------------------------------------


def test_a_job_that_does_not_fit_lets_other_callers_pass_for_a_while_only() -> None:
    bench = Bench(slots=4, budget=10, skip_max_wait_s=5.0)
    [long] = bench.submit(B, steps=30, size=6)
    bench.run()
    [large] = bench.submit(A, size=8)
    for _ in range(30):  # small ones of ever new callers, which would fit for ever
        bench.submit(Caller(f"s{next(NUMBERS)}"), steps=2, size=2)
        bench.run()
    assert long.done
    bench.run(10)
    assert large.done
    admitted = [call[1] for call in bench.engine.calls if call[0] == "admit"]
    # not offered again after a refusal until its turn: others pass for 5 s, then it is the first
    assert large.admitted_at is not None
    assert large.admitted_at <= 1000 + 1 + 30 + 8
    assert admitted.count(large.work.name) > 3


def test_a_callers_overdue_job_holds_back_its_own_jobs_at_once_but_not_others() -> None:
    bench = Bench(slots=4, budget=10, skip_max_wait_s=5.0)
    bench.submit(B, steps=99, size=6)
    bench.run()
    _, small = [*bench.submit(A, size=8), *bench.submit(A, size=1)]
    bench.clock.now += 6.0
    [other] = bench.submit(D, size=1)
    bench.run()
    assert other.done
    assert not small.done


def test_refused_jobs_of_one_caller_do_not_use_up_the_window_of_others() -> None:
    bench = Bench(slots=4, budget=10, skip_window=4)
    bench.submit(B, steps=99, size=6)
    bench.run()
    bench.submit(A, jobs=20, size=8)
    bench.run()
    [small] = bench.submit(D, size=1)
    bench.run()
    assert small.done


# -- priority --------------------------------------------------------------------------------------


def test_priority_orders_a_callers_own_jobs() -> None:
    bench = Bench(slots=1)
    jobs = {p: bench.submit(Caller("a", priority=p))[0] for p in (0, -4, 4, 1, -1, 7, 200)}
    bench.run(7)
    order = sorted(jobs, key=lambda p: jobs[p].admitted_at or 0)
    assert order == [200, 7, 4, 1, 0, -1, -4]


def test_priority_gives_nothing_over_another_caller() -> None:
    bench = Bench(slots=1)
    bench.submit(Caller("a", priority=4), jobs=6)
    bench.submit(Caller("b", priority=-4), jobs=6)
    bench.run(12)
    assert bench.admitted() == "ab" * 6


def test_a_low_priority_waits_at_most_its_time_behind_higher_ones() -> None:
    bench = Bench(slots=1, skip_max_wait_s=10.0)
    [low] = bench.submit(Caller("a", priority=-5))
    for _ in range(14):
        bench.submit(Caller("a", priority=1))
        bench.run()
    assert low.done
    assert low.admitted_at is not None
    assert 10.0 < low.admitted_at - low.submitted_at <= 12.0


# -- state -----------------------------------------------------------------------------------------


def test_operators_see_the_callers() -> None:
    bench = Bench(slots=1)
    bench.submit(A, jobs=3, steps=2)
    bench.run()
    bench.submit(Caller("b", weight=2.0), jobs=2)
    assert bench.host.describe()["callers"] == [
        {"name": "a", "weight": 1.0, "used_s": 1.0, "waiting": 2, "running": 1},
        {"name": "b", "weight": 2.0, "used_s": 1.0, "waiting": 2, "running": 0},
    ]
    bench.run(7)
    assert bench.host.describe()["callers"] == []
