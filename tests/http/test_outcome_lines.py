"""The outcome log: one line per request for a model, with its fields and never its prompt."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import pytest

from tests.fakes import ScriptedEngine
from tests.http.echo import (
    PATIENCE_S,
    Asking,
    EchoPredictor,
    Row,
    Running,
    TaskPredictor,
    held,
    infer_body,
    serving,
    small_settings,
)
from tests.http.log_lines import Line, Lines, logged
from tests.http.test_v2_pressure import grpc_request, send_only, stub

SECRET = "a-secret-prompt"
INFER = "/v2/models/echo/infer"
FIELDS = {
    "ts", "level", "logger", "message", "request_id", "model", "protocol", "operation", "reason",
    "total_ms", "caller", "client.address",
}  # fmt: skip
TIMES = {"rows", "queue_ms", "compute_ms", "engine_ms"}


@pytest.fixture
def lines() -> Iterator[Lines]:
    """The log; checks at the end that it contains no prompt."""
    with logged() as lines:
        yield lines
    assert SECRET not in lines.text


@pytest.fixture
def engine() -> ScriptedEngine:
    """An engine with one slot, held by the test."""
    return ScriptedEngine(slots=1)


def check_outcome(line: Line, **expected: Any) -> None:
    """Check that the line has the fields of every outcome, and these values."""
    assert line.keys() >= FIELDS
    assert (line["level"], line["model"], line["operation"]) == ("info", "echo", "infer")
    assert line["total_ms"] >= 0
    assert {name: line.get(name) for name in expected} == expected


def test_a_rest_request_logs_one_line_with_times_and_rows(lines: Lines) -> None:
    with (
        held(ScriptedEngine(slots=2, gated=False)) as (running, _),
        running.client() as http,
    ):
        named = {"x-request-id": "mine"}
        assert http.post(INFER, json=infer_body(SECRET, SECRET), headers=named).status_code == 200
        (line,) = lines.wait(1)
        check_outcome(line, request_id="mine", protocol="v2_rest", reason="ok", rows=2)
        assert (line["caller"], line["client.address"]) == ("127.0.0.1", "127.0.0.1")
        assert line["engine_ms"] >= 0
        assert line.keys() == FIELDS | TIMES
        assert line["total_ms"] + 1 >= line["compute_ms"] >= 0  # compute_ms is rounded up
        (access,) = lines.wait(1, "access")
        assert access["request_id"] == "mine"
        assert (access["method"], access["path"], access["status"]) == ("POST", INFER, 200)
        assert access["message"].startswith(f"POST {INFER} 200 ")


def test_a_grpc_request_logs_one_line_with_the_clients_id(lines: Lines) -> None:
    with (
        held(ScriptedEngine(gated=False)) as (running, _),
        grpc.insecure_channel(running.grpc_target) as channel,
    ):
        stub(channel).ModelInfer(grpc_request(SECRET), metadata=(("x-request-id", "mine"),))
        (line,) = lines.wait(1)
        check_outcome(line, request_id="mine", protocol="v2_grpc", reason="ok", rows=1)
        (access,) = lines.wait(1, "access")
        assert (access["method"], access["reason"]) == ("ModelInfer", "ok")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "invalid_input"),
        (json.dumps(infer_body(SECRET, parameters={"steps": SECRET})).encode(), "invalid_input"),
        (b"{" + b" " * 2**20 + b"}", "too_large"),
    ],
    ids=["no JSON", "a wrong type", "too large"],
)
def test_a_refused_request_logs_one_line_with_the_reason(
    lines: Lines, body: bytes, reason: str
) -> None:
    with held(ScriptedEngine(gated=False)) as (running, _), running.client() as http:
        answer = http.post(INFER, content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 413)
        (line,) = lines.wait(1)
        check_outcome(line, request_id=answer.headers["x-request-id"], reason=reason)


def test_a_disconnected_client_logs_one_line(lines: Lines, engine: ScriptedEngine) -> None:
    with held(engine) as (running, model):
        gone = send_only(running, SECRET, steps=100)
        engine.wait_in_step()
        gone.close()
        assert model.left.wait(PATIENCE_S)
        (line,) = lines.wait(1)
        check_outcome(line, protocol="v2_rest", reason="cancelled", rows=1)
        assert line.keys() == FIELDS | TIMES
        (access,) = lines.wait(1, "access")
        assert (access["status"], access["request_id"]) == (499, line["request_id"])


def test_a_cancelled_grpc_call_logs_one_line(lines: Lines, engine: ScriptedEngine) -> None:
    with held(engine) as (running, _), grpc.insecure_channel(running.grpc_target) as channel:
        gone = stub(channel).ModelInfer.future(grpc_request(SECRET, steps=100))
        engine.wait_in_step()
        gone.cancel()
        (line,) = lines.wait(1)
        check_outcome(line, protocol="v2_grpc", reason="cancelled", rows=1)


def test_a_missed_deadline_logs_one_line_with_the_time_in_the_queue(
    lines: Lines, engine: ScriptedEngine
) -> None:
    with held(engine) as (running, model), Asking(running) as asking:
        busy = asking.post("busy")
        engine.wait_in_step()
        asked = asking.post(SECRET, headers={"x-request-timeout-ms": "60000"})
        model.wait_submitted(2)
        model.let_pass(60.0)
        late = asked.result(PATIENCE_S)
        (line,) = lines.wait(1)
        check_outcome(
            line, request_id=late.headers["x-request-id"], reason="deadline", compute_ms=0
        )
        assert line["queue_ms"] >= 60_000
        engine.open()
        assert busy.result(PATIENCE_S).status_code == 200
        assert [each["reason"] for each in lines.wait(2)] == ["deadline", "ok"]


def test_a_full_queue_logs_one_line(lines: Lines, engine: ScriptedEngine) -> None:
    with (
        held(engine, small_settings(queue={"capacity": 1})) as (running, model),
        Asking(running) as asking,
    ):
        taken = [asking.post("busy")]
        engine.wait_in_step()
        model.wait_submitted()
        taken.append(asking.post("waits"))
        model.wait_submitted()
        full = asking.post(SECRET).result(PATIENCE_S)
        assert full.status_code == 503
        (line,) = lines.wait(1)
        check_outcome(line, request_id=full.headers["x-request-id"], reason="queue_full")
        engine.open()
        assert [each.result(PATIENCE_S).status_code for each in taken] == [200, 200]
        assert [each["reason"] for each in lines.wait(3)] == ["queue_full", "ok", "ok"]


def test_a_failed_job_logs_one_line_and_a_traceback_with_the_same_id(lines: Lines) -> None:
    engine = ScriptedEngine(gated=False)
    engine.poison["bad"] = ValueError("broken")
    with held(engine) as (running, _), running.client() as http:
        answer = http.post(INFER, json=infer_body("bad"))
        assert answer.status_code == 500
        (line,) = lines.wait(1)
        check_outcome(line, request_id=answer.headers["x-request-id"], reason="poisoned")
        *_, broken = lines.wait(3, "serving.loop")  # after load and warmup
        assert broken["request_id"] == line["request_id"]
        assert "ValueError: broken" in broken["exception"]


def test_at_level_warning_successful_requests_are_not_logged() -> None:
    with (
        logged(logging.WARNING) as lines,
        held(ScriptedEngine(gated=False)) as (running, _),
        running.client() as http,
    ):
        assert http.post(INFER, json=infer_body(SECRET)).status_code == 200
    assert lines.text == ""


class DescribedPredictor(TaskPredictor):
    """A predictor whose log fields differ by row."""

    def prompt(self, request: Row) -> str:
        return request.prompt

    def log_fields(self, work: Any, last: Any) -> Mapping[str, int | str]:
        return {"task": work.name, "steps": work.steps}


def line_of_two_rows(log_prompts: bool) -> Line:
    """The outcome line of a request with two rows."""
    settings = small_settings(server={"log_prompts": log_prompts})
    model: EchoPredictor = DescribedPredictor(
        "echo", ScriptedEngine(slots=2, gated=False), settings
    )
    with logged() as lines, serving(model, settings=settings) as running:
        ask(running, "one", SECRET * 1000)
        return lines.wait(1)[0]


def ask(running: Running, *prompts: str) -> None:
    with running.client() as http:
        assert http.post(INFER, json=infer_body(*prompts)).status_code == 200


def test_prompts_are_logged_only_if_enabled_and_are_truncated() -> None:
    assert line_of_two_rows(True)["prompts"] == ["one", (SECRET * 1000)[:2000]]
    assert "prompts" not in line_of_two_rows(False)


def test_log_fields_of_rows_are_one_value_if_equal_else_a_list() -> None:
    line = line_of_two_rows(False)
    assert line["steps"] == 1
    assert line["task"] == ["one", SECRET * 1000]
