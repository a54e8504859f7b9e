"""Shapes that an engine warms after it is ready: their order, requests that need one, failures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence

import pytest

from predictors.errors import Draining, EngineFailed, ShapeNotWarm
from predictors.serving.engine import Progress, StickyDeviceError
from predictors.serving.host import EngineHost
from predictors.serving.job import Job
from predictors.serving.lifecycle import StartProgress, State
from predictors.serving.loop import MIN_SERVING_S, SERVING_PER_WARMING
from predictors.serving.warm_plan import PlannedShape, WarmPlan
from tests.fakes import PATIENCE_S, ScriptedClock, ScriptedEngine, Task, answer, failure
from tests.serving.conftest import MakeHost, sample, submit


def failing() -> None:
    raise ValueError("this shape is broken")


class OutOfMemoryError(RuntimeError):
    """Like torch's, which is known by its name."""


def no_progress(shape: str, done: int, total: int) -> None:
    return


class Plan:
    """A plan of these shapes, and what was warmed, reported and ended."""

    def __init__(self, *names: str, broken: Sequence[str] = (), met: Collection[str] = ()) -> None:
        self.warmed: list[str] = []
        self.reported: list[tuple[str, int, int]] = []
        self.ends = 0
        shapes = [
            PlannedShape(
                name,
                failing if name in broken else lambda name=name: self.warmed.append(name),
                frozenset({name.partition(" ")[0]}),
            )
            for name in names
        ]
        self.plan = WarmPlan(
            "plan",
            shapes,
            lambda *what: self.reported.append(what),
            self._end,
            num_warm=1,
            met=met,
        )

    def _end(self) -> None:
        self.ends += 1


class LaterEngine(ScriptedEngine):
    """Warms these shapes after it is ready; a task needs the shape of its name. Those of `broken`
    fail, and those of `held` wait for `release(name)`."""

    def __init__(
        self,
        *names: str,
        broken: Sequence[str] = (),
        held: Sequence[str] = (),
        on_warm: Callable[[str], object] = lambda name: None,
        clock: ScriptedClock | None = None,
        gated: bool = False,
    ) -> None:
        self.model = "later"
        super().__init__(hold=held, clock=clock, gated=gated, warm_shapes=["default"])
        self.plan: WarmPlan | None = None
        self.names, self.broken, self.on_warm = names, broken, on_warm
        self.is_warming = threading.Event()
        """Set once the first of `names` is being warmed."""

    def warm(self, progress: Progress) -> None:
        super().warm(progress)
        shapes = [PlannedShape(n, lambda n=n: self._warm(n), frozenset({n})) for n in self.names]
        self.plan = WarmPlan(self.model, shapes, progress, lambda: self._note("over"), num_warm=1)

    def _warm(self, name: str) -> None:
        self.is_warming.set()
        self._note(name)
        self.on_warm(name)
        if name in self.broken:
            raise ValueError("this shape is broken")

    def validate(self, work: Task) -> None:
        assert self.plan is not None
        self.plan.check((work.name,))

    def admit(self, job: Job[Task, str]) -> bool:
        assert self.plan is not None
        self.plan.warm_for((job.work.name,))
        return super().admit(job)


# -- the plan --------------------------------------------------------------------------------------
def test_shapes_are_warmed_in_order_and_each_once() -> None:
    made = Plan("a", "b", "c")
    assert made.plan.counts == (1, 4)
    for _ in range(5):
        made.plan.warm_next(is_idle=True)
    assert made.warmed == ["a", "b", "c"]
    assert made.reported == [("a", 2, 4), ("b", 3, 4), ("c", 4, 4)]
    assert (made.plan.is_over, made.ends) == (True, 1)


def test_what_a_request_needs_is_warmed_before_all_others() -> None:
    made = Plan("a", "b", "c", "d")
    made.plan.warm_for({"c"})
    made.plan.warm_for({"c"})
    made.plan.warm_for({"never promised"})
    assert made.warmed == ["c"]
    made.plan.warm_for({"a"})
    made.plan.warm_next(is_idle=True)
    assert made.warmed == ["c", "a", "b"]
    assert made.plan.describe() == {"done": 4, "total": 5, "waiting": ["d"], "failed": []}


def test_what_failed_is_refused_by_name_and_the_rest_goes_on() -> None:
    made = Plan("a", "b", broken=["a"])
    made.plan.warm_next(is_idle=True)
    with pytest.raises(ShapeNotWarm, match=r"^plan does not serve a until it is started again"):
        made.plan.check({"a"})
    with pytest.raises(ShapeNotWarm):
        made.plan.warm_for({"a"})
    made.plan.check({"b"})
    made.plan.warm_next(is_idle=True)
    assert made.warmed == ["b"]
    assert made.reported == [("a (failed)", 2, 3), ("b", 3, 3)]
    assert made.plan.describe() == {"done": 3, "total": 3, "waiting": [], "failed": ["a"]}
    assert made.ends == 1


def test_a_request_gets_what_another_shape_provides_if_the_first_fails() -> None:
    made = Plan("a one", "b", "a other", broken=["a one"])
    made.plan.warm_for({"a"})
    made.plan.check({"a"})
    assert made.warmed == ["a other"]


def test_a_need_that_is_met_warms_no_other_shape_that_would_meet_it() -> None:
    made = Plan("a one", "a other", "b one", "b other", met={"b"})
    for _ in range(3):
        made.plan.warm_for({"a", "b"})
    assert made.warmed == ["a one"]


def test_a_shape_that_fails_takes_nothing_from_those_that_are_warm() -> None:
    made = Plan("a one", "a other", "b other", broken=["a other", "b other"], met={"b"})
    for _ in range(3):
        made.plan.warm_next(is_idle=True)
    assert made.plan.describe()["failed"] == ["a other", "b other"]
    made.plan.check({"a", "b"})
    made.plan.warm_for({"a", "b"})


def test_a_lost_device_is_no_failure_of_a_shape() -> None:
    def lose() -> None:
        raise StickyDeviceError("lost")

    plan = WarmPlan("plan", [PlannedShape("a", lose)], no_progress, lambda: None)
    with pytest.raises(StickyDeviceError):
        plan.warm_next(is_idle=True)
    assert plan.describe()["failed"] == []


class Cramped:
    """The plan of a shape that runs out of memory these times, and another one behind it."""

    def __init__(self, times: int) -> None:
        self.tries = 0
        self.times = times
        self.reported: list[tuple[str, int, int]] = []
        self.ends: list[int] = []
        shapes = [
            PlannedShape("a", self._run, frozenset({"a"})),
            PlannedShape("b", lambda: None, frozenset({"b"})),
        ]
        self.plan = WarmPlan(
            "plan",
            shapes,
            lambda *what: self.reported.append(what),
            lambda: self.ends.append(self.tries),
        )

    def _run(self) -> None:
        self.tries += 1
        if self.tries <= self.times:
            raise OutOfMemoryError("no memory beside running pictures")


def test_what_ran_out_of_memory_is_tried_once_more_when_nothing_runs() -> None:
    made = Cramped(times=1)
    with pytest.raises(ShapeNotWarm, match="ran out of memory, and is tried once more"):
        made.plan.warm_for({"a"})
    with pytest.raises(ShapeNotWarm, match=r"^plan does not serve a now"):
        made.plan.check({"a"})
    for is_idle in (False, False):  # "b", and nothing: the engine is busy
        made.plan.warm_next(is_idle=is_idle)
    with pytest.raises(ShapeNotWarm):
        made.plan.warm_for({"a"})
    assert (made.tries, made.plan.is_over, made.ends) == (1, False, [])
    assert made.plan.describe() == {"done": 1, "total": 2, "waiting": ["a"], "failed": []}
    made.plan.warm_next(is_idle=True)
    made.plan.check({"a"})
    assert (made.tries, made.plan.is_over, made.ends) == (2, True, [2])
    tried = "a (ran out of memory, and is tried once more)"
    assert made.reported == [(tried, 0, 2), ("b", 1, 2), ("a", 2, 2)]


def test_what_runs_out_of_memory_twice_has_failed_for_good() -> None:
    made = Cramped(times=2)
    for _ in range(4):
        made.plan.warm_next(is_idle=True)
    assert (made.tries, made.plan.is_over, made.ends) == (2, True, [2])
    assert made.plan.describe() == {"done": 2, "total": 2, "waiting": [], "failed": ["a"]}
    with pytest.raises(ShapeNotWarm, match="until it is started again"):
        made.plan.check({"a"})


# -- in a host -------------------------------------------------------------------------------------
def over(host: EngineHost[Task, str]) -> threading.Event:
    """Set once the plan of its engine is over, and reported."""
    event = threading.Event()

    def on_progress(progress: StartProgress) -> None:
        if progress.phase == "planned" and progress.done == progress.total:
            event.set()

    host.events.subscribe(on_progress=on_progress)
    return event


def test_a_host_is_ready_after_the_first_shape_and_warms_the_rest_by_itself(
    make_host: MakeHost,
) -> None:
    engine = LaterEngine("a", "b", held=["a"])
    host = make_host(engine, start=False)
    seen: list[StartProgress] = []
    warm: list[State] = []
    is_ready = threading.Event()  # set after the series of the state
    host.events.subscribe(
        on_progress=seen.append,
        on_warm=lambda: warm.append(host.state),
        on_state=lambda state: state is State.READY and is_ready.set(),
    )
    is_over = over(host)
    host.start()
    host.wait_ready(PATIENCE_S)
    assert host.is_ready
    assert is_ready.wait(PATIENCE_S)
    assert host.warming == (1, 3)
    assert sample("predictors_model_ready", host) == 1
    engine.release("a")
    assert is_over.wait(PATIENCE_S)
    assert host.warming is None
    assert engine.calls == [("load",), ("warm",), ("a",), ("b",), ("over",)]
    assert seen[-3:] == [
        StartProgress("warmup", "default", 1, 1),
        StartProgress("planned", "a", 2, 3),
        StartProgress("planned", "b", 3, 3),
    ]
    host.stop(PATIENCE_S)
    assert warm[0] is State.WARMING


def test_a_request_for_a_cold_shape_is_answered_before_other_shapes_are_warmed(
    make_host: MakeHost,
) -> None:
    engine = LaterEngine("a", "b", "c", held=["a"])
    host = make_host(engine, start=False)
    is_over = over(host)
    host.start()
    host.wait_ready(PATIENCE_S)
    assert engine.is_warming.wait(PATIENCE_S)
    [job] = submit(host, Task("c", 2))
    assert host.is_alive
    engine.release("a")
    assert answer(job) == ["c:1", "c:2"]
    assert is_over.wait(PATIENCE_S)
    verbs = [call for call in engine.calls if call[0] in {"a", "b", "c", "step"}]
    assert verbs == [("a",), ("c",), ("step", "c"), ("step", "c"), ("b",)]


def test_a_shape_that_fails_is_refused_and_all_else_is_served(make_host: MakeHost) -> None:
    engine = LaterEngine("a", "b", broken=["a"], held=["a"])
    host = make_host(engine, start=False)
    is_over = over(host)
    host.start()
    host.wait_ready(PATIENCE_S)
    [waiting] = submit(host, Task("a"))  # accepted before its shape is known to fail
    engine.release("a")
    refusal = failure(waiting)
    assert isinstance(refusal, ShapeNotWarm)
    assert "later does not serve a until it is started again" in refusal.message
    assert is_over.wait(PATIENCE_S)
    with pytest.raises(ShapeNotWarm):
        submit(host, Task("a"))
    assert answer(submit(host, Task("b"))[0]) == ["b:1"]
    assert (host.is_ready, host.is_alive) == (True, True)


def test_a_shape_that_ran_out_of_memory_beside_a_job_is_warm_once_the_job_is_done(
    make_host: MakeHost,
) -> None:
    tries: list[bool] = []

    def cramped(name: str) -> None:
        tries.append(engine.busy)
        if engine.busy:
            raise OutOfMemoryError("no memory beside running pictures")

    engine = LaterEngine("a", on_warm=cramped, gated=True)
    host = make_host(engine, start=False)
    engine.model = host.model
    host.loop.load_and_warm()
    [running] = submit(host, Task("x", 2))
    [cold] = submit(host, Task("a"))
    serving = threading.Thread(target=host.loop._serve_while_warming)
    serving.start()
    assert isinstance(failure(cold), ShapeNotWarm)
    engine.take_steps(2)
    assert answer(running) == ["x:1", "x:2"]
    serving.join(PATIENCE_S)
    assert tries == [True, False]
    assert engine.plan is not None
    assert engine.plan.is_over
    engine.plan.check({"a"})
    counts = [
        sample("predictors_planned_warm_ups_total", host, outcome=outcome)
        for outcome in ("ok", "failed")
    ]
    assert counts == [1, 0]


def test_a_lost_device_during_a_later_warm_up_fails_the_host(make_host: MakeHost) -> None:
    def lose(name: str) -> None:
        raise StickyDeviceError("the device context is lost")

    host = make_host(LaterEngine("a", on_warm=lose), start=False)
    host.start()
    assert host.lifecycle.wait_for(State.FAILED, timeout_s=PATIENCE_S)
    assert not host.is_alive
    with pytest.raises(EngineFailed):
        submit(host, Task("b"))


def test_a_stop_during_a_later_warm_up_ends_after_it_and_warms_no_more(
    make_host: MakeHost,
) -> None:
    engine = LaterEngine("a", "b", held=["a"])
    host = make_host(engine)
    assert engine.is_warming.wait(PATIENCE_S)
    stopping = threading.Thread(target=host.stop, args=(PATIENCE_S,))
    stopping.start()
    assert host.lifecycle.wait_for(State.DRAINING, timeout_s=PATIENCE_S)
    with pytest.raises(Draining):
        submit(host, Task("x"))
    engine.release("a")
    stopping.join(PATIENCE_S)
    assert host.state is State.STOPPED
    assert [call for call in engine.calls if call[0] in {"a", "b"}] == [("a",)]
    assert engine.calls[-1] == ("close",)


def test_a_draining_host_warms_nothing_more_and_finishes_its_jobs(make_host: MakeHost) -> None:
    engine = LaterEngine("a", "b", gated=True)
    host = make_host(engine, start=False)
    host.loop.load_and_warm()
    [job] = submit(host, Task("x", 2))
    host.lifecycle.move(State.DRAINING)
    serving = threading.Thread(target=host.loop._serve_while_warming)
    serving.start()
    engine.take_steps(2)
    assert answer(job) == ["x:1", "x:2"]
    host.loop.stop()
    host.jobs.close()
    serving.join(PATIENCE_S)
    assert not serving.is_alive()
    assert not [call for call in engine.calls if call[0] in {"a", "b"}]


def test_steps_without_a_pause_let_a_shape_in_now_and_then(make_host: MakeHost) -> None:
    clock = ScriptedClock()
    took = 20.0
    engine = LaterEngine(
        "a", "b", clock=clock, gated=True, on_warm=lambda _: setattr(clock, "now", clock.now + took)
    )
    host = make_host(engine, clock=clock, start=False)
    host.loop.load_and_warm()
    submit(host, Task("long", steps=100, step_s=MIN_SERVING_S / 4))
    engine.open()
    serving = threading.Thread(target=host.loop._serve_while_warming)
    serving.start()
    serving.join(PATIENCE_S)
    assert not serving.is_alive()
    host.loop.stop()
    verbs = [call[0] for call in engine.calls if call[0] in {"a", "b", "step"}]
    gap = int(SERVING_PER_WARMING * took / (MIN_SERVING_S / 4))
    assert verbs == ["step"] * 4 + ["a"] + ["step"] * gap + ["b"]
    assert host.is_alive


def test_planned_warm_ups_are_counted_by_outcome(make_host: MakeHost) -> None:
    engine = LaterEngine("a", "b", "c", broken=["b"])
    host = make_host(engine, start=False)
    engine.model = host.model
    host.loop.load_and_warm()
    assert sample("predictors_planned_warm_ups_left", host) == 3
    host.loop._serve_while_warming()
    name = "predictors_planned_warm_ups_total"
    assert [sample(name, host, outcome=outcome) for outcome in ("ok", "failed")] == [2, 1]
    assert sample("predictors_planned_warm_ups_left", host) == 0
