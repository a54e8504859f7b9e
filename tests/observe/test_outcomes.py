"""Each outcome that is counted is the one that its caller saw, exactly, over every protocol: the
engine is held still where an outcome depends on when it comes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.observe.clients import (
    PATHS,
    Clients,
    Kind,
    chat,
    counted,
    generations,
    picture,
    words,
)
from tests.observe.faulty import BUG, FOLDER, POISON, Faults
from tests.observe.live import Live

SETTINGS = {"PREDICTORS_QUEUE_CAPACITY": "2", "PREDICTORS_FLUX_SLOTS": "1"}
LATE_S = 0.3
Ask = Callable[[Clients], str]

GOOD: tuple[Ask, ...] = (
    lambda c: c.rest("flux", picture()),
    lambda c: c.grpc("flux", picture()),
    lambda c: c.openai("images", generations()),
    lambda c: c.rest("qwen-vl", words()),
    lambda c: c.grpc("qwen-vl", words()),
    lambda c: c.openai("chat", chat()),
    lambda c: c.stream(chat()),
)
DRAW = GOOD[:3]
WRONG: tuple[Ask, ...] = (
    lambda c: c.rest("flux", picture(steps=10_000)),
    lambda c: c.rest("qwen-vl", {"inputs": []}),
    lambda c: c.grpc("qwen-vl", words(-2)),
    lambda c: c.openai("images", generations(steps=0)),
    lambda c: c.openai("chat", chat(4, [{"type": "nonsense"}])),
    lambda c: c.stream(chat(4, temperature="warm")),
)
LATE: tuple[Callable[[Clients, float], str], ...] = (  # with so many seconds until it is too late
    lambda c, s: c.rest("flux", picture(timeout=round(1e6 * s))),
    lambda c, s: c.grpc("flux", picture(timeout=round(1e6 * s))),
    lambda c, s: c.openai("images", generations(), **{"x-request-timeout-ms": f"{1000 * s:.0f}"}),
)
BROKEN: dict[str, tuple[Ask, ...]] = {
    reason: (
        lambda c, prompt=prompt: c.rest("flux", picture(prompt=prompt)),  # type: ignore[misc]
        lambda c, prompt=prompt: c.grpc("flux", picture(prompt=prompt)),  # type: ignore[misc]
        lambda c, prompt=prompt: c.openai("images", generations(prompt=prompt)),  # type: ignore[misc]
    )
    for reason, prompt in (("internal", BUG), ("poisoned", POISON))
}


class Stage:
    """A server with faults, its callers, and the jobs that it was seen to have."""

    def __init__(self, live: Live, clients: Clients, faults: Faults) -> None:
        self.live, self.clients, self.faults = live, clients, faults
        self._pool = ThreadPoolExecutor(8)

    def ask(self, ask: Ask) -> Future[str]:
        """While the test does something else."""
        return self._pool.submit(ask, self.clients)

    @contextmanager
    def still(self, model: str = "flux") -> Iterator[None]:
        """No step of `model` is finished in this block."""
        self.faults.set(f"hang-{model}")
        try:
            yield
        finally:
            self.faults.clear(f"hang-{model}")

    def ask_until_it_runs(self, late: Callable[[Clients, float], str]) -> list[Future[str]]:
        """Everybody who asked: the last one has the slot, also when its time is up. On a busy
        machine that may be so before it has come so far: then the next has twice the time."""
        asked: list[Future[str]] = []
        while not self.live.running("flux"):
            if not asked or asked[-1].done():
                asked.append(self.ask(partial(late, s=LATE_S * 2 ** len(asked))))
        return asked

    def assert_counted(self) -> None:
        """The server has counted what was seen since it started, and no request is left."""
        self.live.wait_idle()
        assert counted(self.live) == self.clients.seen
        for gauge in ("waiting", "running"):
            values = self.live.samples(f"predictors_requests_{gauge}")
            assert set(values.values()) == {0.0}, gauge

    def close(self) -> None:
        self._pool.shutdown()


@contextmanager
def staged(folder: Path) -> Iterator[Stage]:
    faults = folder / "faults"
    faults.mkdir(parents=True)
    calm = {"PREDICTORS_OVERLOAD_LOOP_LAG_S": "0"}  # a busy machine makes the event loop late
    settings = {**SETTINGS, **calm, FOLDER: str(faults)}
    with Live(folder / "server.log", settings, "tests.observe.faulty") as live:
        live.wait_warm()
        with Clients(live) as clients:
            stage = Stage(live, clients, Faults(faults))
            try:
                yield stage
            finally:
                for model in ("flux", "qwen-vl"):
                    stage.faults.clear(f"hang-{model}")
                stage.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("outcomes")) as made:
        yield made


def test_answers_and_refusals_of_wrong_requests(stage: Stage) -> None:
    assert {ask(stage.clients) for ask in GOOD} == {"ok"}
    assert {ask(stage.clients) for ask in WRONG} == {"invalid_input"}
    stage.assert_counted()


def test_what_a_full_queue_refuses(stage: Stage) -> None:
    with stage.still():
        accepted = [stage.ask(GOOD[0])]
        stage.live.wait_view("flux", running=1)
        accepted += [stage.ask(ask) for ask in DRAW[1:]]
        stage.live.wait_view("flux", running=1, queued=2)
        assert {ask(stage.clients) for ask in DRAW} == {"queue_full"}
    assert {asked.result() for asked in accepted} == {"ok"}
    stage.assert_counted()


def test_deadlines_of_running_and_of_waiting_jobs(stage: Stage) -> None:
    for first in range(len(LATE)):
        with stage.still():
            asked = stage.ask_until_it_runs(LATE[first])
            asked += [
                stage.ask(partial(late, s=LATE_S)) for late in LATE if late is not LATE[first]
            ]
            assert {each.result() for each in asked} == {"deadline"}
        stage.live.wait_idle()
    stage.assert_counted()


@pytest.mark.parametrize("model", ["flux", "qwen-vl"])
def test_callers_that_leave_while_their_job_provably_runs(stage: Stage, model: str) -> None:
    body = picture(50) if model == "flux" else words(200)
    own = ("images", generations(50)) if model == "flux" else ("chat", chat(200, stream=True))
    rest, openai = Kind(model, "v2_rest", "infer", ""), Kind(model, "openai", own[0], "")
    leavers = (
        stage.clients.leaving_http(f"/v2/models/{model}/infer", left(rest), body),
        stage.clients.leaving_http(PATHS[own[0]], left(openai), own[1]),
        stage.clients.leaving_grpc(model, body),
    )
    for leaver in leavers:
        with stage.still(model):
            with leaver:
                stage.live.wait_view(model, running=1)
            # it is counted while the step still lasts: nobody waits for the engine to leave
            stage.live.wait_answered()
        stage.live.wait_idle()
    stage.assert_counted()


def left(kind: Kind) -> Kind:
    return kind._replace(reason="cancelled")


def test_callers_that_leave_the_queue(stage: Stage) -> None:
    with stage.still(), ExitStack() as leaving:
        running = stage.ask(GOOD[0])
        stage.live.wait_view("flux", running=1)
        kind = Kind("flux", "v2_rest", "infer", "cancelled")
        leaving.enter_context(stage.clients.leaving_http("/v2/models/flux/infer", kind, picture()))
        leaving.enter_context(stage.clients.leaving_grpc("flux", picture()))
        stage.live.wait_view("flux", running=1, queued=2)
        leaving.close()
        stage.live.wait_view("flux", running=1)
    assert running.result() == "ok"
    stage.assert_counted()


@pytest.mark.parametrize("reason", BROKEN)
def test_requests_that_break_something(stage: Stage, reason: str) -> None:
    assert {ask(stage.clients) for ask in BROKEN[reason]} == {reason}
    stage.assert_counted()


def test_requests_that_find_no_memory(stage: Stage) -> None:
    stage.faults.set("memory")
    assert {ask(stage.clients) for ask in DRAW} == {"oom"}
    stage.faults.clear("memory")
    stage.assert_counted()


def test_jobs_are_counted_by_outcome_too(stage: Stage) -> None:
    """Every job that was accepted is answered once: what ran, expired, left or broke. One whose
    time was up before it was prepared was none."""
    seen: Counter[tuple[str, str]] = Counter()
    for kind, number in stage.clients.seen.items():
        if kind.reason not in ("invalid_input", "queue_full", "internal"):
            seen[kind.model, kind.reason] += number
    found: Counter[tuple[str, str]] = Counter()
    for series in ("predictors_jobs_total", "predictors_admission_rejected_total"):
        for at, number in stage.live.samples(series).items():
            labels = dict(at)
            if number and (series == "predictors_jobs_total" or labels["reason"] == "deadline"):
                found[labels["model"], labels["reason"]] += round(number)
    assert found == seen


def test_what_a_drain_refuses_and_what_it_finishes(tmp_path: Path) -> None:
    with staged(tmp_path) as stage:
        live = stage.live
        with stage.still():
            accepted = stage.ask(GOOD[0])
            live.wait_view("flux", running=1)
            live.terminate()
            assert {ask(stage.clients) for ask in GOOD} == {"draining"}
            assert counted(live) == stage.clients.seen
            assert live.samples("predictors_draining") == {frozenset(): 1.0}
        assert accepted.result() == "ok"
        assert live.wait_ended() == 0
