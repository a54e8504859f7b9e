"""Cases of field.md D: names, origins, compressed bodies, streams and pings, over the wire."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator

import grpc
import httpx
import openai
import pytest
import tritonclient.http

from predictors.errors import InvalidRequest
from predictors.protocol.http.listening import listen
from predictors.protocol.kserve_sdk import pb, pb_grpc
from predictors.protocol.registry import Registry
from predictors.settings import InvalidSetting, Settings
from tests.fakes import ScriptedEngine
from tests.http.echo import (
    PATIENCE_S,
    Asking,
    Running,
    echo,
    held,
    infer_body,
    serving,
    small_settings,
)
from tests.http.openai_echo import Writer, words

SLASHED, ALIAS = "org/name", "team/gpt-4o"
SPELLINGS = ["org/name", "org%2Fname", "org%2fname"]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A server of an echo model and a chat model, with slashes in names and two aliases."""
    settings = small_settings(
        server={"aliases": f"{ALIAS}=org/writer, plain={SLASHED}", "repository_api": True}
    )
    models = [echo(SLASHED, settings), Writer("org/writer", words(), settings)]
    with serving(*models, settings=settings) as found:
        yield found


@pytest.fixture
def http(running: Running) -> Iterator[httpx.Client]:
    with running.client() as found:
        yield found


# -- names -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*SPELLINGS, "plain"])
def test_a_name_with_a_slash_and_an_alias_are_reachable_on_every_route(
    http: httpx.Client, name: str
) -> None:
    called = "plain" if name == "plain" else SLASHED
    for version in ("", "/versions/1"):
        path = f"/v2/models/{name}{version}"
        reply = http.post(f"{path}/infer", json=infer_body("a"))
        assert (reply.status_code, reply.json()["model_name"]) == (200, called)
        assert http.get(f"{path}/ready").json() == {"name": called, "ready": True}
        assert http.get(path).json()["name"] == called
    for prefix in ("/v1", "/openai/v1"):
        card = http.get(f"{prefix}/models/{name}").json()
        assert (card["id"], card["name"], card["ready"]) == (called, called, True)
    for verb in ("unload", "load"):
        reply = http.post(f"/v2/repository/models/{name}/{verb}")
        assert reply.json() == {"name": called, verb: True}
    reply = http.post(f"/v1/models/{name}:predict", json={})
    assert (reply.status_code, called in reply.json()["error"]) == (501, True)


def test_a_path_below_a_model_that_is_no_route_is_a_404_without_a_false_reason(
    http: httpx.Client,
) -> None:
    for path in ("config", "stats", "versions/1/config", "versions/2/ready", "trace/setting"):
        reply = http.get(f"/v2/models/{SLASHED}/{path}")
        assert reply.status_code == 404
        assert "there is no model" not in reply.json()["error"]
    reply = http.post("/v2/models/org/nam/infer", json=infer_body("a"))
    assert reply.json() == {
        "error": f"there is no model 'org/nam'; served: {SLASHED}, org/writer, {ALIAS}, plain"
    }
    assert http.get("/v2/models/" + "a/" * 10_000).status_code == 404


def test_every_name_is_listed_once(http: httpx.Client) -> None:
    names = [SLASHED, "org/writer", ALIAS, "plain"]
    assert [card["id"] for card in http.get("/v1/models").json()["data"]] == names
    assert http.get("/v1/models").json()["models"] == names
    assert http.get("/v2/models").json()["models"] == names
    index = http.post("/v2/repository/index").json()
    assert [entry["name"] for entry in index] == names[:2]  # aliases are not loaded or unloaded


def test_openais_client_reads_its_alias_back(running: Running) -> None:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="-", max_retries=0) as client:
        assert client.models.retrieve(ALIAS).id == ALIAS
        asked = client.chat.completions.create(
            model=ALIAS, messages=[{"role": "user", "content": "a"}]
        )
        assert asked.choices[0].message.content == "a:1"


@pytest.mark.parametrize("name", [SLASHED, "plain"])
def test_tritonclient_and_grpc_find_the_name(running: Running, name: str) -> None:
    rest = tritonclient.http.InferenceServerClient(running.url.removeprefix("http://"))
    try:
        assert rest.is_model_ready(name)
        assert rest.get_model_metadata(name)["name"] == name
    finally:
        rest.close()
    request = pb.ModelInferRequest(model_name=name)
    tensor = request.inputs.add(name="prompt", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"a")
    with grpc.insecure_channel(running.grpc_target) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ModelInfer(request, timeout=PATIENCE_S).model_name == name
        assert stub.ModelReady(pb.ModelReadyRequest(name=name), timeout=PATIENCE_S).ready
        asked = pb.ModelMetadataRequest(name=name)
        assert stub.ModelMetadata(asked, timeout=PATIENCE_S).name == name


def test_metrics_have_the_models_own_name(http: httpx.Client) -> None:
    http.post("/v2/models/plain/infer", json=infer_body("a"))
    http.post("/v1/chat/completions", json={"model": ALIAS, "messages": []})
    series = re.findall(r'requests_total\{[^}]*model="([^"]*)"', http.get("/metrics").text)
    assert SLASHED in series
    assert "org/writer" in series
    assert not {"plain", ALIAS} & set(series)


def test_a_bad_name_ends_the_start_at_once() -> None:
    arguments = ["--model", "a=.", "--served-model-name", "b=c", "--log-format", "text"]
    command = [sys.executable, "-m", "predictors", "serve", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    message = "error: the alias 'b' names no model: 'c'; served: a\n"
    assert (ended.returncode, ended.stderr) == (2, message)


def test_a_second_model_of_the_same_name_is_refused() -> None:
    registry = Registry([echo("a")], Settings())
    with pytest.raises(InvalidRequest, match="'a' is given twice"):
        registry.add(echo("a"))
    registry.add(registry.models["a"])  # KServe's `start` may name a model again


# -- addresses -------------------------------------------------------------------------------------
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_both_ways_to_write_any_address_mean_ipv4_and_ipv6(host: str) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    settings = small_settings(server={"host": host})
    with serving(echo("echo", settings), settings=settings) as running:
        for address in ("127.0.0.1", "[::1]"):
            url = f"http://{address}:{running.server.http_port}/v2/health/ready"
            assert httpx.get(url).json() == {"ready": True}
            with grpc.insecure_channel(f"{address}:{running.server.grpc_port}") as channel:
                stub = pb_grpc.GRPCInferenceServiceStub(channel)
                asked = pb.ServerReadyRequest()
                assert stub.ServerReady(asked, timeout=PATIENCE_S, wait_for_ready=True).ready


def test_without_ipv6_any_address_means_those_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    for host in ("0.0.0.0", "::"):
        with listen(host, 0) as listener:
            assert listener.family == socket.AF_INET


def test_a_port_that_is_taken_ends_the_start() -> None:
    with listen("0.0.0.0", 0) as first:
        for host in ("0.0.0.0", "::"):
            with pytest.raises(InvalidSetting, match="can't listen on"):
                listen(host, first.getsockname()[1])


# -- metadata --------------------------------------------------------------------------------------
def test_the_server_names_the_extensions_that_it_offers(http: httpx.Client) -> None:
    found = http.get("/v2").json()["extensions"]
    assert found == ["binary_tensor_data", "parameters", "schedule_policy", "model_repository"]
    schedule = {"priority": 1, "timeout": 60_000_000}
    reply = http.post("/v2/models/plain/infer", json=infer_body("a", parameters=schedule))
    assert reply.status_code == 200
    with serving(echo()) as closed, closed.client() as other:
        assert "model_repository" not in other.get("/v2").json()["extensions"]
        with grpc.insecure_channel(closed.grpc_target) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            asked = stub.ServerMetadata(pb.ServerMetadataRequest(), timeout=PATIENCE_S)
            assert list(asked.extensions) == ["binary_tensor_data", "parameters", "schedule_policy"]


# -- retries ---------------------------------------------------------------------------------------
def test_one_large_picture_does_not_make_the_next_refusals_say_a_minute() -> None:
    engine = ScriptedEngine(slots=1)
    settings = small_settings(queue={"capacity": 2})
    with held(engine, settings, clock=lambda: 0.0) as (running, model), Asking(running) as asking:
        for seconds in (100.0, 0.05, 0.05):
            asked = asking.post("a")
            engine.wait_in_step()
            model.let_pass(seconds)
            engine.allow()
            assert asked.result(PATIENCE_S).status_code == 200
        running.wait_idle()
        waiting = [asking.post("running")]
        engine.wait_in_step()
        waiting += [asking.post(name) for name in ("b", "c")]
        model.wait_submitted(6)
        with running.client() as http:
            reply = http.post("/v2/models/echo/infer", json=infer_body("one too many"))
        engine.open()
        assert [one.result(PATIENCE_S).status_code for one in waiting] == [200] * 3
        assert reply.status_code == 503
        assert int(reply.headers["retry-after"]) <= 2


def test_a_deadline_is_not_to_be_tried_again(http: httpx.Client) -> None:
    engine = ScriptedEngine(slots=1)
    with held(engine) as (running, _), running.client() as client:
        soon = {"x-request-timeout-ms": "50"}
        reply = client.post("/v2/models/echo/infer", json=infer_body("a"), headers=soon)
        assert (reply.status_code, reply.headers["x-should-retry"]) == (504, "false")
        assert "retry-after" not in reply.headers
    assert "x-should-retry" not in http.get("/nowhere").headers
