"""V2 clients while the engine is busy, held by the test: disconnects, deadlines, a full queue, a
failing row.
"""

from __future__ import annotations

import json
import socket
import time

import grpc
import pytest

from predictors import metrics
from predictors.protocol.kserve_sdk import pb, pb_grpc
from tests.fakes import ScriptedEngine
from tests.http.echo import PATIENCE_S, Asking, Running, held, infer_body, small_settings


def stub(channel: grpc.Channel) -> pb_grpc.GRPCInferenceServiceStub:
    return pb_grpc.GRPCInferenceServiceStub(channel)


def grpc_request(prompt: str, steps: int = 1) -> pb.ModelInferRequest:
    """A request for one task."""
    request = pb.ModelInferRequest(model_name="echo")
    tensor = request.inputs.add(name="prompt", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(prompt.encode())
    request.parameters["steps"].int64_param = steps
    return request


def send_only(running: Running, prompt: str, steps: int) -> socket.socket:
    """Send a request on a raw socket without reading the response."""
    body = json.dumps(infer_body(prompt, parameters={"steps": steps})).encode()
    head = (
        "POST /v2/models/echo/infer HTTP/1.1\r\nhost: [::1]\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    sock = socket.create_connection(("127.0.0.1", running.server.http_port), timeout=PATIENCE_S)
    sock.sendall(head.encode() + body)
    return sock


def test_a_disconnected_rest_client_frees_its_slot_within_one_step() -> None:
    engine = ScriptedEngine(slots=1)
    with held(engine) as (running, model), Asking(running) as asking:
        gone = send_only(running, "gone", steps=100)
        engine.wait_in_step()
        model.wait_submitted()
        waiting = asking.post("next")
        model.wait_submitted()
        gone.close()
        assert model.left.wait(PATIENCE_S), "the server did not notice"
        engine.take_steps(1)  # the step in progress
        engine.wait_in_step()
        assert engine.steps == [("gone",)]
        assert engine.calls[-2:] == [("evict", "gone"), ("admit", "next")]
        engine.allow(1)
        assert waiting.result().status_code == 200


def test_a_disconnect_during_the_body_is_counted_as_cancelled() -> None:
    def cancelled_count() -> float:
        labels = ("echo", "v2_rest", "infer", "cancelled")
        return metrics.requests_total.labels(*labels)._value.get()  # type: ignore[no-any-return]

    with held(ScriptedEngine(gated=False)) as (running, _):
        before = cancelled_count()
        head = "POST /v2/models/echo/infer HTTP/1.1\r\nhost: [::1]\r\ncontent-length: 100\r\n"
        with socket.create_connection(("127.0.0.1", running.server.http_port)) as sock:
            sock.settimeout(PATIENCE_S)
            sock.sendall(f"{head}expect: 100-continue\r\n\r\n".encode())
            assert sock.recv(4096).startswith(b"HTTP/1.1 100 ")  # the body is being read
            assert running.server.registry.in_flight == 1
            sock.sendall(b"{")
        running.wait_idle()
        assert cancelled_count() == before + 1
        assert running.stop() == 0  # nothing is cancelled_count that a drain would wait for


def test_a_cancelled_grpc_call_frees_its_slot_within_one_step() -> None:
    engine = ScriptedEngine(slots=1)
    with (
        held(engine) as (running, model),
        Asking(running) as asking,
        grpc.insecure_channel(running.grpc_target) as channel,
    ):
        gone = stub(channel).ModelInfer.future(grpc_request("gone", steps=100))
        engine.wait_in_step()
        model.wait_submitted()
        waiting = asking.post("next")
        model.wait_submitted()
        gone.cancel()
        assert model.left.wait(PATIENCE_S), "the server did not notice"
        engine.take_steps(1)
        engine.wait_in_step()
        assert engine.steps == [("gone",)]
        assert engine.calls[-2:] == [("evict", "gone"), ("admit", "next")]
        engine.allow(1)
        assert waiting.result().status_code == 200


@pytest.mark.parametrize(
    "deadline",
    [{"headers": {"x-request-timeout-ms": "60"}}, {"parameters": {"timeout": 60_000}}],
    ids=["header in milliseconds", "parameter in microseconds"],
)
def test_a_deadline_in_the_queue_is_504_and_the_job_never_starts(deadline: dict) -> None:
    engine = ScriptedEngine(slots=1)
    with held(engine) as (running, _), Asking(running) as asking:
        busy = asking.post("busy")
        engine.wait_in_step()
        late = asking.post("late", **deadline).result(PATIENCE_S)  # answered while the step is held
        assert late.status_code == 504
        assert "error" in late.json()
        engine.open()
        assert busy.result(PATIENCE_S).status_code == 200
        assert ("admit", "late") not in engine.calls


def test_a_grpc_deadline_in_the_queue_is_deadline_exceeded_and_the_job_never_starts() -> None:
    engine = ScriptedEngine(slots=1)
    with (
        held(engine) as (running, model),
        Asking(running) as asking,
        grpc.insecure_channel(running.grpc_target) as channel,
    ):
        busy = asking.post("busy")
        engine.wait_in_step()
        late = stub(channel).ModelInfer.future(grpc_request("late"), timeout=PATIENCE_S)
        model.wait_submitted(2)
        model.let_pass(PATIENCE_S)
        assert late.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        engine.open()
        assert busy.result(PATIENCE_S).status_code == 200
        assert ("admit", "late") not in engine.calls


@pytest.mark.parametrize("status", [503, 429])
def test_a_full_queue_refuses_with_retry_after(
    status: int, record_property: pytest.RecordProperty
) -> None:
    engine = ScriptedEngine(slots=1)
    settings = small_settings(queue={"capacity": 2, "overload_status": status})
    with held(engine, settings) as (running, model), Asking(running) as asking:
        accepted = [asking.post("running")]
        engine.wait_in_step()
        accepted += [asking.post("waiting 1"), asking.post("waiting 2")]
        model.wait_submitted(3)
        began = time.perf_counter()
        refused = asking.post("too many").result(PATIENCE_S)
        record_property("refusal_ms", round((time.perf_counter() - began) * 1000, 2))
        assert refused.status_code == status
        assert int(refused.headers["retry-after"]) >= 1
        assert "error" in refused.json()
        with grpc.insecure_channel(running.grpc_target) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                stub(channel).ModelInfer(grpc_request("too many"), timeout=PATIENCE_S)
            trailing = dict(caught.value.trailing_metadata())
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert int(trailing["retry-after"]) >= 1
        assert b"google.rpc.RetryInfo" in trailing["grpc-status-details-bin"]
        assert "x-request-id" in trailing
        engine.open()
        assert [x.result(PATIENCE_S).status_code for x in accepted] == [200, 200, 200]


def test_more_rows_than_the_queue_holds_are_a_400_and_none_is_admitted() -> None:
    engine = ScriptedEngine(slots=1, gated=False)
    with held(engine, small_settings(queue={"capacity": 4})) as (running, _):
        with running.client() as http:
            names = [f"row {i}" for i in range(5)]
            refused = http.post("/v2/models/echo/infer", json=infer_body(*names))
        assert refused.status_code == 400
        assert not [call for call in engine.calls if call[0] == "admit"]


def test_a_failing_row_fails_alone() -> None:
    engine = ScriptedEngine(slots=8)
    engine.poison["row 3"] = ValueError("secret detail in /mnt/models")
    with held(engine) as (running, model), Asking(running) as asking:
        first = asking.post("row 0")
        engine.wait_in_step()
        others = [asking.post(f"row {i}") for i in range(1, 8)]
        model.wait_submitted(8)
        engine.open()
        replies = [x.result(PATIENCE_S) for x in (first, *others)]
        assert [r.status_code for r in replies] == [200, 200, 200, 500, 200, 200, 200, 200]
        assert "secret" not in replies[3].text


def test_an_unexpected_error_is_a_500_and_the_connection_stays_open() -> None:
    with held(ScriptedEngine(gated=False)) as (running, model), running.client() as http:

        def broken(request: object) -> None:
            raise KeyError("/mnt/secret")

        model.prepare = broken  # type: ignore[method-assign]
        reply = http.post(
            "/v2/models/echo/infer", json=infer_body(), headers={"x-request-id": "r7"}
        )
        assert reply.status_code == 500
        assert reply.json() == {"error": "internal error; the log has more under request id r7"}
        assert http.get("/v2/health/live").status_code == 200
        assert "connection" not in reply.headers
        with (
            grpc.insecure_channel(running.grpc_target) as channel,
            pytest.raises(grpc.RpcError) as caught,
        ):
            stub(channel).ModelInfer(grpc_request("x"), timeout=PATIENCE_S)
        assert caught.value.code() == grpc.StatusCode.INTERNAL
        assert "secret" not in caught.value.details()


@pytest.mark.parametrize(
    "path", ["/v2/models/echo/infer", "/v1/chat/completions", "/v2/repository/index"]
)
def test_a_body_that_never_starts_times_out(path: str) -> None:
    settings = small_settings(server={"body_timeout_s": 0.2})
    with held(ScriptedEngine(gated=False), settings) as (running, _):
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\n"
        with socket.create_connection(("127.0.0.1", running.server.http_port)) as sock:
            sock.settimeout(PATIENCE_S)
            sock.sendall(head.encode())
            assert sock.recv(4096).startswith(b"HTTP/1.1 504 ")


def test_a_deadline_during_the_body_is_504_and_the_next_request_is_served() -> None:
    with held(ScriptedEngine(gated=False)) as (running, _), running.client() as http:
        head = "POST /v2/models/echo/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n"
        with socket.create_connection(("127.0.0.1", running.server.http_port)) as sock:
            sock.settimeout(PATIENCE_S)
            sock.sendall(f"{head}x-request-timeout-ms: 50\r\n\r\n{{".encode())
            assert sock.recv(4096).startswith(b"HTTP/1.1 504 ")
        assert http.post("/v2/models/echo/infer", json=infer_body()).status_code == 200
        running.wait_idle()


def test_too_many_rows_are_refused_before_any_is_decoded() -> None:
    engine = ScriptedEngine(gated=False)
    with held(engine) as (running, model), running.client() as http:
        refused = http.post("/v2/models/echo/infer", json=infer_body(*[""] * 20_000))
        assert refused.status_code == 400
        assert "1 to 64 rows, not 20000" in refused.json()["error"]
        assert model.seen == []
