"""In any order of submit, step, cancel, expire, poison, refusal and drain every accepted job is
answered exactly once.

The host runs without threads under a scripted clock, so that hypothesis can shrink what it finds.
Another test uses real threads and no script.
"""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from predictors import metrics
from predictors.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    OutOfMemory,
    Overloaded,
    ServingError,
    StepFailed,
)
from predictors.serving.accounts import Caller
from predictors.serving.host import EngineHost
from predictors.serving.job import Job
from predictors.serving.lifecycle import State
from predictors.settings import QueueSettings
from tests.fakes import (
    PATIENCE_S,
    EchoEngine,
    OutOfMemoryError,
    ScriptedClock,
    ScriptedEngine,
    Task,
    answer,
    unread,
    wait_idle,
)
from tests.serving.conftest import MakeHost, sample, submit

NUMBERS = count(1)
CALLERS = [Caller(), Caller(), Caller("a"), Caller("a", priority=1), Caller("b", weight=2.0)]
TaskJob = Job[Task, str]


def value_of(series: Any, host: EngineHost[Task, str], *labels: str) -> float:
    """One series, read without collecting all others: the registry grows with every example."""
    return float(series.labels(host.model, *labels).collect()[0].samples[0].value)


class WatchedEngine(ScriptedEngine):
    """Records admitted jobs, and asserts at each admission that no earlier equal job waits."""

    def __init__(self, slots: int, spare_slots: int, budget: int, clock: ScriptedClock) -> None:
        super().__init__(slots, spare_slots=spare_slots, budget=budget, clock=clock, gated=False)
        self.accepted: list[TaskJob] = []
        self.admitted: set[TaskJob] = set()

    def admit(self, job: TaskJob) -> bool:
        assert not job.done, "offered after it was answered"
        assert not job.is_late(job.clock()), "offered after its deadline"
        is_admitted = super().admit(job)
        if is_admitted:
            self.admitted.add(job)
            overtaken = [
                other.id
                for other in self.accepted
                if other.arrival_number < job.arrival_number
                and other.caller == job.caller
                and other.work.size <= job.work.size
                and not other.done
                and other not in self.admitted
                and other.work.name not in self.refuse
            ]
            assert overtaken == [], "not first in, first out among equals"
        return is_admitted

    def step(self, jobs: Sequence[TaskJob]) -> None:
        assert len(jobs) <= self.slots + self.spare_slots
        super().step(jobs)


class Serving(RuleBasedStateMachine):
    @initialize(
        slots=st.integers(1, 4),
        spare=st.integers(0, 2),
        capacity=st.integers(1, 6),
        window=st.integers(0, 3),
    )
    def begin(self, slots: int, spare: int, capacity: int, window: int) -> None:
        self.clock = ScriptedClock()
        self.engine = WatchedEngine(slots, spare, 8, self.clock)
        self.capacity = capacity
        self.host: EngineHost[Task, str] = EngineHost(
            f"property-{next(NUMBERS)}",
            self.engine,
            QueueSettings(capacity=capacity, skip_window=window, skip_max_wait_s=4.0),
            clock=self.clock,
        )
        self.host.loop.load_and_warm()
        self.names = count()
        self.left: set[TaskJob] = set()
        self.refused: set[str] = set()
        self.outcomes: dict[TaskJob, str] = {}
        self.is_draining = False
        self.reserved: list[tuple[Caller, int]] = []

    @rule(
        steps=st.lists(st.integers(1, 4), min_size=1, max_size=4),
        size=st.sampled_from([1, 1, 2, 8]),
        timeout=st.sampled_from([None, None, 1, 3]),
        poison=st.sampled_from([None, None, None, "error", "memory"]),
        caller=st.sampled_from(CALLERS),
    )
    def submit(
        self,
        steps: list[int],
        size: int,
        timeout: int | None,
        poison: str | None,
        caller: Caller,
    ) -> None:
        tasks = [Task(f"t{next(self.names)}", s, size, step_s=s / 8) for s in steps]
        if poison:
            errors = {"error": ValueError("poison"), "memory": OutOfMemoryError("poison")}
            self.engine.poison[tasks[-1].name] = errors[poison]
        waiting = self.host.jobs.waiting + sum(rows for _, rows in self.reserved)
        half = (self.capacity + 1) // 2
        own = sum(job.caller.name == caller.name for job in self.waiting_jobs())
        own += sum(rows for who, rows in self.reserved if who.name == caller.name)
        deadline = None if timeout is None else self.clock.now + timeout
        try:
            jobs = self.host.submit(tasks, request_id="r", deadline=deadline, caller=caller)
        except Draining:
            assert self.is_draining
            return
        except ServingError:
            # never refused while there is a place
            is_alone = own == waiting
            assert waiting + len(tasks) > self.capacity or (
                not is_alone and own + len(tasks) > half
            )
            self.every_job_is_answered_at_most_once()  # no row of a refused request was accepted
            return
        assert not self.is_draining
        self.engine.accepted += jobs
        assert len(jobs) == len(tasks)
        assert len(tasks) <= self.capacity
        free = max(0, self.engine.slots - len(self.host.jobs.running))
        others_run = any(job.caller.name != caller.name for job in self.host.jobs.running)
        spare = self.engine.spare_slots if others_run or own != waiting else 0
        most = self.capacity + spare + (0 if own == waiting else half)
        assert self.host.jobs.waiting <= most + free

    @rule(rows=st.integers(1, 3), caller=st.sampled_from(CALLERS))
    def reserve(self, rows: int, caller: Caller) -> None:
        with suppress(ServingError):
            self.host.reserve(rows, caller)
            self.reserved.append((caller, rows))

    @precondition(lambda self: self.reserved)
    @rule(is_prepared=st.booleans())
    def use_what_was_reserved(self, is_prepared: bool) -> None:
        caller, rows = self.reserved[0]
        tasks = [Task(f"t{next(self.names)}", 2) for _ in range(rows)]
        if is_prepared:
            try:
                self.engine.accepted += self.host.submit(
                    tasks, request_id="r", deadline=None, caller=caller, is_reserved=True
                )
            except Draining:
                assert self.is_draining
                is_prepared = False
        if not is_prepared:
            self.host.release(rows, caller)
        del self.reserved[0]

    @rule()
    def run_round(self) -> None:
        self.host.loop.run_once()

    @rule(seconds=st.sampled_from([0.5, 1, 3]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.open_jobs())
    @rule(choice=st.integers(0, 10**6))
    def cancel(self, choice: int) -> None:
        jobs = self.open_jobs()
        job = jobs[choice % len(jobs)]
        was_waiting = job.admitted_at is None
        job.cancel()
        self.left.add(job)
        assert job.done == was_waiting  # a waiting job is answered at once, a running one evicted

    @precondition(lambda self: self.open_jobs())
    @rule(choice=st.integers(0, 10**6))
    def refuse(self, choice: int) -> None:
        jobs = self.open_jobs()
        name = jobs[choice % len(jobs)].work.name
        self.engine.refuse.add(name)
        self.refused.add(name)

    @rule(width=st.sampled_from([None, 1, 2]))
    def shrink_memory(self, width: int | None) -> None:
        self.engine.oom_width = width

    @precondition(lambda self: not self.is_draining)
    @rule(gives_up=st.sampled_from([False, False, False, True]))
    def drain(self, gives_up: bool) -> None:
        if gives_up:
            self.host.drain(0)
            self.is_draining = True
            assert not self.open_jobs()

    def open_jobs(self) -> list[TaskJob]:
        return [job for job in self.engine.accepted if not job.done]

    def waiting_jobs(self) -> list[TaskJob]:
        return [job for job in self.open_jobs() if job not in self.engine.admitted]

    @invariant()
    def every_job_is_answered_at_most_once(self) -> None:
        for job in self.engine.accepted:
            if job.done:
                outcome = self.check(job)
                assert self.outcomes.setdefault(job, outcome) == outcome
        waiting = self.waiting_jobs()
        assert self.host.jobs.waiting == len(waiting)
        assert len(self.host.jobs.running) <= self.engine.slots + self.engine.spare_slots
        assert value_of(metrics.requests_waiting, self.host) == len(waiting)
        assert value_of(metrics.requests_running, self.host) == len(self.host.jobs.running)

    def check(self, job: TaskJob) -> str:
        """Its outcome, after asserting that an event explains it."""
        error = job.error
        name = job.work.name
        match error:
            case None:
                assert unread(job) == job.work.chunks
                assert name not in self.engine.poison
            case StepFailed():
                assert name in self.engine.poison or name in self.refused
            case OutOfMemory():
                assert isinstance(self.engine.poison[name], OutOfMemoryError)
            case Cancelled():
                assert job in self.left
            case DeadlineExceeded():
                assert job.is_late(self.clock())
            case Draining():
                assert self.is_draining
            case _:
                pytest.fail(f"unexpected {error!r}")
        return type(error).__name__

    def teardown(self) -> None:
        if not hasattr(self, "host"):
            return
        self.engine.refuse.clear()
        work = sum(job.work.steps for job in self.open_jobs())
        for _ in range(work + 2):  # a step advances one job at least
            self.host.loop.run_once()
        assert self.open_jobs() == []
        self.every_job_is_answered_at_most_once()
        assert self.engine.active == []
        assert (self.host.jobs.waiting, len(self.host.jobs.running)) == (0, 0)
        assert self.host.describe()["callers"] == []
        for caller, rows in self.reserved:
            self.host.release(rows, caller)
        assert self.host.jobs._places.taken == 0
        assert self.host.jobs._accounts._open == {}
        reasons = metrics.REASONS
        counted = sum(value_of(metrics.jobs_total, self.host, reason) for reason in reasons)
        assert counted == len(self.engine.accepted)
        self.host.stop()


Serving.TestCase.settings = settings(stateful_step_count=40)
TestServing = Serving.TestCase


def test_with_real_threads_in_any_order_every_job_is_answered(make_host: MakeHost) -> None:
    engine: EchoEngine[Task, str] = EchoEngine(
        4, steps=lambda task: task.steps, chunk=lambda task, i: f"{task.name}:{i}"
    )
    host = make_host(engine, capacity=16)
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()

    def client(seed: int) -> None:
        dice = random.Random(seed)
        for i in range(60):
            rows = [Task(f"{seed}-{i}-{r}", dice.randint(1, 4)) for r in range(dice.randint(1, 3))]
            timeout_s = dice.choice([None, 0.0005, 5.0])
            deadline = None if timeout_s is None else time.monotonic() + timeout_s
            try:
                jobs = submit(host, *rows, deadline=deadline)
            except (Overloaded, DeadlineExceeded) as error:
                with lock:
                    outcomes[f"refused {type(error).__name__}"] += len(rows)
                continue
            if dice.random() < 0.3:
                dice.choice(jobs).cancel()
            for job in jobs:
                try:
                    chunks = answer(job)
                    assert chunks == job.work.chunks
                    outcome = "ok"
                except ServingError as error:
                    outcome = error.reason
                with lock:
                    outcomes[outcome] += 1

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(6)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in clients)
    wait_idle(host)
    assert host.state is State.READY
    assert engine.active == []
    for reason in ("ok", "cancelled", "deadline"):
        assert sample("predictors_jobs_total", host, reason=reason) == outcomes[reason], reason
    assert outcomes["ok"] > 0
    assert sample("predictors_requests_waiting", host) == 0
    assert sample("predictors_requests_running", host) == 0


def test_an_answered_job_is_freed_long_before_its_deadline(make_host: MakeHost) -> None:
    """A deadline in ten minutes must not keep ten minutes of traffic in memory."""
    engine = ScriptedEngine(slots=4, gated=False)
    host = make_host(engine, start=False)
    host.loop.load_and_warm()
    refs = []
    for i in range(500):
        [job] = submit(host, Task(f"t{i}"), deadline=time.monotonic() + 600)
        host.loop.run_once()
        refs.append(weakref.ref(job))
    del job
    gc.collect()
    assert [ref for ref in refs if ref() is not None] == []
    assert len(host.jobs._deadlines) < 100
