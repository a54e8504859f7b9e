"""Health and readiness on every protocol, from the start of the process to its end."""

from __future__ import annotations

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from predictors.protocol.kserve_sdk import pb, pb_grpc
from predictors.serving.engine import StickyDeviceError
from tests.fakes import ScriptedEngine
from tests.http.echo import PATIENCE_S, Asking, Running, held, infer_body, small_settings

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def probe_results(running: Running, http: httpx.Client, channel: grpc.Channel) -> dict[str, object]:
    """Results of all probes."""
    inference = pb_grpc.GRPCInferenceServiceStub(channel)
    health = health_pb2_grpc.HealthStub(channel)
    return {
        "root": http.get("/").status_code,
        "vllm": http.get("/health").status_code,
        "live": http.get("/v2/health/live").status_code,
        "ready": http.get("/v2/health/ready").status_code,
        "model": http.get("/v2/models/echo/ready").status_code,
        "version": http.get("/v2/models/echo/versions/1/ready").status_code,
        "v1": http.get("/v1/models/echo").status_code,
        "grpc live": inference.ServerLive(pb.ServerLiveRequest()).live,
        "grpc ready": inference.ServerReady(pb.ServerReadyRequest()).ready,
        "grpc model": inference.ModelReady(pb.ModelReadyRequest(name="echo")).ready,
        "health": health.Check(health_pb2.HealthCheckRequest()).status,
        "health model": health.Check(health_pb2.HealthCheckRequest(service="echo")).status,
    }


def expected(*, ready: bool) -> dict[str, object]:
    status = 200 if ready else 503
    serving = SERVING if ready else NOT_SERVING
    found: dict[str, object] = {"root": 200, "live": 200, "grpc live": True}
    found |= dict.fromkeys(("vllm", "ready", "model", "version", "v1"), status)
    found |= dict.fromkeys(("grpc ready", "grpc model"), ready)
    return found | dict.fromkeys(("health", "health model"), serving)


def test_readiness_through_loading_warming_serving_and_draining() -> None:
    engine = ScriptedEngine(hold=("load", "warm"))
    with (
        held(engine, wait_ready=False) as (running, model),
        running.client() as http,
        grpc.insecure_channel(running.grpc_target) as channel,
        Asking(running) as asking,
    ):
        assert probe_results(running, http, channel) == expected(ready=False)
        early = http.post("/v2/models/echo/infer", json=infer_body())
        assert early.status_code == 503
        assert int(early.headers["retry-after"]) >= 1
        engine.release("load")
        assert probe_results(running, http, channel) == expected(ready=False)
        engine.release("warm")
        model.host.wait_ready(PATIENCE_S)
        assert probe_results(running, http, channel) == expected(ready=True)
        accepted = asking.post("accepted")
        engine.wait_in_step()
        running.server.stop()
        assert probe_results(running, http, channel) == expected(ready=False)
        late = http.post("/v2/models/echo/infer", json=infer_body())
        assert late.status_code == 503
        assert late.json() == {"error": "the server is shutting down; ask another replica"}
        engine.open()
        assert accepted.result(PATIENCE_S).status_code == 200
        assert running.join() == 0


def test_an_unknown_model_is_404_and_not_found() -> None:
    with held(ScriptedEngine(gated=False)) as (running, _), running.client() as http:
        assert http.get("/v2/models/nobody/ready").status_code == 404
        assert http.get("/v2/models/nobody").json() == {
            "error": "there is no model 'nobody'; served: echo"
        }
        with grpc.insecure_channel(running.grpc_target) as channel:
            inference = pb_grpc.GRPCInferenceServiceStub(channel)
            for ask in (
                lambda: inference.ModelReady(pb.ModelReadyRequest(name="nobody")),
                lambda: inference.ModelMetadata(pb.ModelMetadataRequest(name="echo", version="2")),
                lambda: health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(service="nobody")
                ),
            ):
                with pytest.raises(grpc.RpcError) as caught:
                    ask()
                assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_watch_reports_changes_of_a_models_health() -> None:
    engine = ScriptedEngine(hold=("warm",))
    with (
        held(engine, wait_ready=False) as (running, _),
        grpc.insecure_channel(running.grpc_target) as channel,
    ):
        request = health_pb2.HealthCheckRequest(service="echo")
        states = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=PATIENCE_S)
        assert next(states).status == NOT_SERVING
        engine.release("warm")
        assert next(states).status == SERVING
        states.cancel()


def test_a_dead_engine_answers_all_requests_and_ends_the_process_with_an_error() -> None:
    engine = ScriptedEngine(slots=1)
    engine.poison["dies"] = StickyDeviceError("illegal address 0x7f00deadbeef")
    with held(engine) as (running, model), Asking(running) as asking:
        replies = [asking.post("dies")]
        engine.wait_in_step()
        replies.append(asking.post("waits"))
        model.wait_submitted(2)
        engine.allow(1)
        found = [reply.result(PATIENCE_S) for reply in replies]
        assert [reply.status_code for reply in found] == [503, 503]
        assert all("0x" not in reply.text for reply in found)
        assert running.join() == 70


@pytest.mark.parametrize("verb", ["load", "warm"])
def test_a_model_that_fails_to_start_ends_the_process_with_an_error(verb: str) -> None:
    engine = ScriptedEngine(hold=(verb,))
    engine.raise_in[verb] = OSError("/mnt/models/flux: no such file")
    with held(engine, wait_ready=False) as (running, _), running.client() as http:
        assert http.get("/v2/health/ready").status_code == 503
        engine.release(verb)
        assert running.join() == 70


def test_liveness_fails_when_the_engine_stalls() -> None:
    engine = ScriptedEngine(slots=1)
    settings = small_settings()
    with (
        held(engine, settings) as (running, model),
        running.client() as http,
        Asking(running) as asking,
    ):
        accepted = asking.post("stuck")
        engine.wait_in_step()
        assert http.get("/v2/health/live").status_code == 200
        model.let_pass(settings.queue.stall_timeout_s + 1)
        assert http.get("/v2/health/live").status_code == 503
        with grpc.insecure_channel(running.grpc_target) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            assert not stub.ServerLive(pb.ServerLiveRequest()).live
        engine.open()
        assert accepted.result(PATIENCE_S).status_code == 200
