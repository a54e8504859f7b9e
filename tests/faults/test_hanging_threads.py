"""Threads that hang in a call: their requests are answered at the end of the drain, liveness fails,
and the process ends within its grace period."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from predictors.base import Answer
from predictors.operators import serve
from predictors.operators.serve import leave_hanging_threads
from predictors.protocol.call import Call
from predictors.serving.host import JOIN_TIMEOUT_S
from predictors.serving.thread_pools import ThreadPools
from tests.fakes import PATIENCE_S, EchoEngine, ScriptedEngine
from tests.http.echo import Asking, Row, TaskPredictor, infer_body, serving, small_settings

MARGIN_S = 15.0
"""Seconds that the chart's terminationGracePeriodSeconds has beyond linger and drain."""


class Hanging(TaskPredictor):
    """`prepare` or `encode_v2` hangs for the prompt `hang`, until `go_on`."""

    def __init__(self, stage: str, stall_timeout_s: float = 60.0) -> None:
        settings = small_settings(
            server={"drain_timeout_s": 0.05, "prepare_threads": 1},
            queue={"stall_timeout_s": stall_timeout_s},
        )
        super().__init__("echo", EchoEngine(), settings)
        self._stage = stage
        self.hangs, self.go_on = threading.Event(), threading.Event()
        self.came = threading.Semaphore(0)

    async def run(self, requests: Sequence[Row], call: Call) -> list[Answer[Row, Any]]:
        self.came.release()
        return await super().run(requests, call)

    def _hang(self, stage: str, prompt: str) -> None:
        if (stage, prompt) == (self._stage, "hang"):
            self.hangs.set()
            assert self.go_on.wait(PATIENCE_S)

    def prepare(self, request: Row) -> Any:
        self._hang("prepare", request.prompt)
        return super().prepare(request)

    def encode_v2(self, request: Any, answers: Any) -> Any:
        self._hang("encode", answers[0].request.prompt)
        return super().encode_v2(request, answers)


@pytest.fixture
def hanging(request: pytest.FixtureRequest) -> Iterator[Hanging]:
    model = Hanging(request.param)
    yield model
    model.go_on.set()


@pytest.mark.parametrize("hanging", ["prepare", "encode"], indirect=True)
def test_a_request_whose_thread_hangs_is_answered_after_the_drain(hanging: Hanging) -> None:
    with serving(hanging, settings=hanging.settings) as running, Asking(running) as asking:
        asked = [asking.post("hang"), asking.post("hang")]  # one hangs, one waits for its thread
        assert all(hanging.came.acquire(timeout=PATIENCE_S) for _ in asked)
        assert hanging.hangs.wait(PATIENCE_S)
        running.stop()
        replies = [each.result(PATIENCE_S) for each in asked]
    assert [reply.status_code for reply in replies] == [503, 503]
    assert {"error": "echo was shut down before this was done"} in [r.json() for r in replies]
    assert running.exit_codes == [0]


@pytest.mark.parametrize("hanging", ["prepare"], indirect=True)
def test_a_hanging_preparation_meets_its_deadline_and_fails_liveness(
    hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = threading.Event()
    hanging._pools = pools = ThreadPools("echo", 1, 60.0, lambda: 1e9 if late.is_set() else 0.0)
    microseconds = 1000
    with serving(hanging, settings=hanging.settings) as running, running.client() as http:
        while not hanging.hangs.is_set():  # a busy machine may be late to prepare it
            body = infer_body("hang", parameters={"timeout": microseconds})
            assert http.post("/v2/models/echo/infer", json=body).status_code == 504
            microseconds *= 4
        assert http.get("/v2/health/live").status_code == 200
        late.set()
        assert http.get("/v2/health/live").status_code == 503
        hanging.go_on.set()
        with Asking(running) as asking:  # the thread is free again, and so is the model
            assert asking.post("fine").result(PATIENCE_S).status_code == 200
        assert pools.is_alive
        assert http.get("/v2/health/live").status_code == 200


def model(*, is_left_behind: bool, was_ready: bool = True) -> Any:
    host = SimpleNamespace(is_left_behind=is_left_behind, was_ready=was_ready)
    return SimpleNamespace(name="m", host=host)


@pytest.fixture
def end() -> Callable[[list[Any]], list[int]]:
    def run(models: list[Any]) -> list[int]:
        codes: list[int] = []
        leave_hanging_threads(models, 70, codes.append)
        return codes

    return run


def test_a_process_with_a_hanging_thread_ends_without_it(
    end: Callable[[list[Any]], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "HANG_PATIENCE_S", 0.01)
    monkeypatch.setattr(serve.logging, "shutdown", lambda: None)
    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait, args=(PATIENCE_S,), name="hangs")
    monkeypatch.setattr(serve.threading, "enumerate", lambda: [threading.main_thread(), thread])
    thread.start()
    try:
        assert end([model(is_left_behind=False)]) == [70]
    finally:
        go_on.set()
        thread.join(PATIENCE_S)
    assert end([model(is_left_behind=False)]) == []
    assert end([model(is_left_behind=True)]) == [70]


def test_a_process_that_ends_during_its_start_reports_no_error(
    end: Callable[[list[Any]], list[int]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(serve.logging, "shutdown", lambda: None)
    # other servers of this process have threads of their own
    monkeypatch.setattr(serve.threading, "enumerate", lambda: [threading.main_thread()])
    caplog.set_level(logging.INFO)
    assert end([model(is_left_behind=True, was_ready=False)]) == [70]
    assert [(line.levelname, line.message) for line in caplog.records] == [
        ("INFO", "ending now, without the end of the start of m")
    ]


def test_all_waits_of_the_end_fit_into_the_grace_period() -> None:
    from predictors.cluster.reporter import CLOSE_TIMEOUT_S as REPORTER_S
    from predictors.observe.line_writer import FLUSH_S
    from predictors.observe.tracing import STOP_TIMEOUT_S
    from predictors.protocol.http.app import CLOSE_TIMEOUT_S

    engine_s = JOIN_TIMEOUT_S + serve.HANG_PATIENCE_S
    assert CLOSE_TIMEOUT_S + engine_s + STOP_TIMEOUT_S + REPORTER_S + FLUSH_S <= MARGIN_S


def test_an_engine_that_hangs_answers_its_callers_and_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from predictors import base

    monkeypatch.setattr(base, "JOIN_TIMEOUT_S", 0.05)
    engine = ScriptedEngine(slots=1)
    settings = small_settings(server={"drain_timeout_s": 0.05})
    hung = TaskPredictor("echo", engine, settings)
    with serving(hung, settings=settings) as running, Asking(running) as asking:
        asked = asking.post("job")
        hung.wait_submitted()
        engine.wait_in_step()
        assert running.stop() == 0
        assert asked.result(PATIENCE_S).status_code == 503
    assert hung.host.is_left_behind
    engine.open()
