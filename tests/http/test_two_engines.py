"""Two models of one process: what the failure of one engine does to the callers of the other."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import httpx
import pytest

from predictors.serving.engine import StickyDeviceError
from tests.fakes import ScriptedEngine
from tests.http.echo import PATIENCE_S, Asking, Running, TaskPredictor, infer_body, serving
from tests.http.echo import small_settings as settings_of


def ask(
    asking: Asking, running: Running, model: str, prompt: str, steps: int = 1
) -> Future[httpx.Response]:
    def post() -> httpx.Response:
        body: dict[str, Any] = infer_body(prompt, parameters={"steps": steps})
        with running.client() as http:
            return http.post(f"/v2/models/{model}/infer", json=body)

    return asking.call(post)


def test_accepted_work_of_the_other_engine_is_finished_and_the_process_ends() -> None:
    dying, living, settings = ScriptedEngine(slots=1), ScriptedEngine(slots=1), settings_of()
    dying.poison["dies"] = StickyDeviceError("illegal address")
    models = [TaskPredictor(n, e, settings) for n, e in (("draws", dying), ("talks", living))]
    with serving(*models, settings=settings) as running, Asking(running) as asking:
        accepted = ask(asking, running, "talks", "goes on", steps=3)
        living.wait_in_step()
        lost = ask(asking, running, "draws", "dies")
        dying.wait_in_step()
        dying.allow(1)
        assert lost.result(PATIENCE_S).status_code == 503
        with running.client() as http:
            refused = http.post("/v2/models/talks/infer", json=infer_body("late"))
        assert refused.status_code == 503
        living.open()
        answer = accepted.result(PATIENCE_S)
        assert answer.status_code == 200
        assert running.join() == 70


def test_a_request_that_fails_one_engine_alone_leaves_the_other_as_it_is() -> None:
    culprit, other, settings = ScriptedEngine(), ScriptedEngine(), settings_of()
    culprit.poison["wrong"] = ZeroDivisionError()
    models = [TaskPredictor(n, e, settings) for n, e in (("draws", culprit), ("talks", other))]
    with serving(*models, settings=settings) as running, Asking(running) as asking:
        beside = ask(asking, running, "talks", "beside", steps=2)
        other.wait_in_step()
        failed = ask(asking, running, "draws", "wrong")
        culprit.open()
        assert failed.result(PATIENCE_S).status_code == 500
        other.open()
        assert beside.result(PATIENCE_S).status_code == 200
        with running.client() as http:
            assert http.get("/v2/health/ready").status_code == 200
            for model in ("draws", "talks"):
                again = http.post(f"/v2/models/{model}/infer", json=infer_body("again"))
                assert again.status_code == 200


@pytest.mark.parametrize("verb", ["load", "warm"])
def test_a_model_that_does_not_start_ends_the_process_of_both(verb: str) -> None:
    failing, living, settings = ScriptedEngine(hold=(verb,)), ScriptedEngine(), settings_of()
    failing.raise_in[verb] = OSError("no such file")
    models = [TaskPredictor(n, e, settings) for n, e in (("draws", failing), ("talks", living))]
    with serving(*models, settings=settings, wait_ready=False) as running:
        models[1].host.wait_ready(PATIENCE_S)
        with running.client() as http:
            assert http.get("/v2/models/talks/ready").status_code == 200
            assert http.get("/v2/health/ready").status_code == 503
        failing.release(verb)
        assert running.join() == 70
        living.open()
