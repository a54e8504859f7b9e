"""API keys over the wire: every data route of REST and gRPC asks for one, probes never."""

from __future__ import annotations

import json
import logging
import random
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from starlette.routing import Route

from predictors import metrics
from predictors.observe import sampling
from predictors.observe.sampling import SampledLines
from predictors.protocol import outcomes
from predictors.protocol.anthropic.routes import anthropic_routes
from predictors.protocol.grpc.refused_calls import RefusedCalls
from predictors.protocol.key_file import ApiKey, digest_of, new_key, write_keys
from predictors.protocol.kserve_sdk import pb, pb_grpc
from predictors.protocol.openai.routes import openai_routes
from predictors.protocol.openapi.routes import openapi_routes
from predictors.protocol.v2.grpc import SERVICE, InferenceMethods
from predictors.protocol.v2.rest import v2_routes
from predictors.protocol.v2.stream_responses import METHOD
from predictors.settings import AccessSettings, Settings
from tests.fakes import EchoEngine
from tests.http.echo import PATIENCE_S, Running, echo, infer_body, serving, small_settings
from tests.http.log_lines import Lines, logged
from tests.http.openai_echo import Artist, Writer, words

INFER = "/v2/models/echo/infer"
CHAT = {"model": "writer", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
PICTURE = {"model": "artist", "prompt": "a"}
ORIGIN = "https://app.example.com"

ANN, BOB, OLD = new_key(), new_key(), new_key()
KEYS = [
    ApiKey("ann", digest_of(ANN), weight=2.0),
    ApiKey("bob", digest_of(BOB), models=frozenset({"echo"}), max_jobs=2),
    ApiKey("old", digest_of(OLD), expires=1.0),
]


def settings_of(file: Path, server: dict[str, Any] | None = None, **access: Any) -> Settings:
    own = small_settings(
        server={"allowed_origins": ORIGIN, "repository_api": True, **(server or {})}
    )
    return replace(own, access=AccessSettings(keys_file=str(file), **access))


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with one model per protocol, and keys."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    file.write_bytes(write_keys(KEYS))
    own = settings_of(file, {"public_url": "https://pictures.example.com"})
    models = [
        echo("echo", own),
        Writer("writer", words(), own),
        Artist("artist", EchoEngine(), own),
    ]
    with serving(*models, settings=own) as running:
        yield running


@pytest.fixture
def http(keyed: Running) -> Iterator[httpx.Client]:
    with keyed.client() as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# -- every route -----------------------------------------------------------------------------------
OPEN_ROUTES = {
    "/",
    "/metrics",
    "/health",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/{model:model}/ready",
    "/v2/models/{model:model}/versions/{version}/ready",
    "/v1/images/files/{file}",
    "/openai/v1/images/files/{file}",
}
PARAMETERS = {"model": "echo", "name": "echo", "version": "1", "file": "none.png", "response": "x"}


def routes(running: Running) -> list[Route]:
    makers = (v2_routes, openai_routes, anthropic_routes, openapi_routes)
    found = [route for make in makers for route in make(running.server.registry)]
    assert all(isinstance(route, Route) for route in found)
    return [*found, Route("/metrics", lambda: None, methods=["GET"])]  # type: ignore[list-item]


def filled(path: str) -> str:
    return re.sub(r"\{(\w+)(?::\w+)?\}", lambda found: PARAMETERS[found[1]], path)


def test_every_route_that_is_no_probe_refuses_requests_without_a_key(
    keyed: Running, http: httpx.Client
) -> None:
    seen = set()
    for route in routes(keyed):
        seen.add(route.path)
        for method in sorted({*(route.methods or ()), "PUT", "OPTIONS"}):
            for headers in ({}, bearer("wrong"), bearer(OLD), {"x-api-key": "wrong"}):
                reply = http.request(method, filled(route.path), headers=headers, content=b"{}")
                is_open = route.path in OPEN_ROUTES
                assert (reply.status_code != 401) is is_open, (route.path, method)
    assert seen >= OPEN_ROUTES


def test_every_route_answers_a_right_key(keyed: Running, http: httpx.Client) -> None:
    for route in routes(keyed):
        for method in route.methods or ():
            headers = bearer(ANN) if method == "POST" else {"x-api-key": ANN}
            reply = http.request(method, filled(route.path), headers=headers, content=b"{}")
            assert reply.status_code != 401, (route.path, method)
    loaded = http.post("/v2/repository/models/echo/load", headers=bearer(ANN))
    assert loaded.status_code == 200


SPELLINGS = [
    "/v2/", "/v2/models/", "//v2/models", "/V2/models", "/v2/models/echo/infer/", "/v2/%6dodels",
    "/v2/models/echo%2Finfer", "/v2/../v2/models", "/v2/health/live/../../models", "/nowhere",
    "/metrics/../v2/models", "/v1/images/files/", "/v1/images/files/a/b", "/v1/images/files/..",
    "/v2/models/echo/ready/../infer", "/v2/health/ready;/models", "/v2/health/ready%0a",
    "/v2/models/x/ready/infer", "*",
]  # fmt: skip


@pytest.mark.parametrize("path", SPELLINGS)
def test_no_spelling_of_a_path_gets_data_without_a_key(keyed: Running, path: str) -> None:
    with socket.create_connection(("127.0.0.1", keyed.server.http_port), PATIENCE_S) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := raw.recv(65536):
            answer += piece
    status = int(answer.split()[1])
    assert status in (400, 401, 404)


def test_every_method_of_grpc_that_is_no_probe_refuses_calls_without_a_key(
    keyed: Running,
) -> None:
    probes = {"ServerLive", "ServerReady", "ModelReady"}
    registry = keyed.server.registry
    methods = {*InferenceMethods(registry, RefusedCalls(registry)).cheap(), "ModelInfer", METHOD}
    assert methods >= probes
    with grpc.insecure_channel(keyed.grpc_target) as channel:
        for name in (*methods, "NoSuchMethod"):
            call = channel.unary_unary(f"/{SERVICE}/{name}")
            for metadata in ((), (("authorization", "Bearer wrong"),), (("x-api-key", OLD),)):
                ended = call.future(b"", metadata=metadata, timeout=PATIENCE_S)
                is_refused = ended.code() is grpc.StatusCode.UNAUTHENTICATED
                assert is_refused is (name not in probes), name
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="")
        assert health.Check(request, timeout=PATIENCE_S).status == 1


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
def test_grpc_serves_a_right_key(keyed: Running, header: str) -> None:
    value = f"Bearer {ANN}" if header == "authorization" else ANN
    assert infer_grpc(keyed, ((header, value),)) is grpc.StatusCode.OK


def infer_grpc(running: Running, metadata: Any = (), name: str = "echo") -> Any:
    asked = pb.ModelInferRequest(model_name=name)
    asked.inputs.add(name="prompt", datatype="BYTES", shape=[1]).contents.bytes_contents.append(
        b"a"
    )
    with grpc.insecure_channel(running.grpc_target) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        return stub.ModelInfer.future(asked, metadata=metadata, timeout=PATIENCE_S).code()


# -- wrong keys ------------------------------------------------------------------------------------
def test_of_hundreds_of_wrong_keys_none_is_let_in(keyed: Running, http: httpx.Client) -> None:
    random_bits, keys = random.Random(16), keyed.server.registry.callers.keys
    assert keys is not None
    wrong = []
    for i in range(300):
        secret = list((ANN, BOB)[i % 2])
        at = random_bits.randrange(4, len(secret))
        secret[at] = chr(33 + (ord(secret[at]) - 33 + 1 + i % 90) % 94)
        wrong.append("".join(secret))
    before = keys.comparisons
    with logged() as lines:
        assert {http.get("/v2", headers=bearer(key)).status_code for key in wrong} == {401}
        with grpc.insecure_channel(keyed.grpc_target) as channel:
            call = channel.unary_unary(f"/{SERVICE}/ServerMetadata")
            codes = {
                call.future(b"", metadata=(("x-api-key", key),), timeout=PATIENCE_S).code()
                for key in wrong
            }
        assert codes == {grpc.StatusCode.UNAUTHENTICATED}
    assert keys.comparisons - before == 2 * len(wrong) * len(KEYS)
    assert not any(key in lines.text for key in wrong)


def test_a_flood_of_wrong_keys_writes_some_lines_and_the_number_of_the_others(
    keyed: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled = SampledLines(logging.getLogger(FRESH), clock=lambda: 0.0)  # all in one window
    monkeypatch.setattr(outcomes, "_sampled", sampled)
    with logged() as lines:
        for _ in range(200):
            assert http.get("/v2", headers=bearer("wrong")).status_code == 401
        with lines._news:  # the last ones left out are reported within a second
            assert lines._news.wait_for(lambda: accounted(lines) == 200, PATIENCE_S)
    refused = [line for line in lines.of("outcomes") if "client.address" in line]
    assert len(refused) == sampling.LINES
    assert {line["client.address"] for line in refused} == {"127.0.0.1"}
    assert {line["reason"] for line in refused} == {"unauthorized"}


FRESH = "predictors.fresh"  # not the log in which the test before may still report


def accounted(lines: Lines) -> int:
    refused = [line for line in lines.of("outcomes") if "client.address" in line]
    return sum(line.get("left_out", 0) for line in [*refused, *lines.of("fresh")]) + len(refused)


# -- answers ---------------------------------------------------------------------------------------
def test_a_refusal_has_the_form_of_its_protocol(keyed: Running, http: httpx.Client) -> None:
    v2 = http.post(INFER, json=infer_body("a"))
    assert (v2.status_code, v2.headers["www-authenticate"]) == (401, "Bearer")
    assert v2.json().keys() == {"error"}
    assert "x-request-id" in v2.headers
    for path in ("/v1/chat/completions", "/openai/v1/images/generations", "/v1/models"):
        openai = http.post(path, json=CHAT, headers=bearer("wrong"))
        assert openai.headers["www-authenticate"] == "Bearer"
        error = openai.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    asked = pb.ModelInferRequest(model_name="echo")
    with grpc.insecure_channel(keyed.grpc_target) as channel:
        call = pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer.future(asked)
        assert call.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "API key is needed" in call.details()
        assert "x-request-id" in dict(call.trailing_metadata())


def test_a_body_without_a_key_is_not_asked_for(keyed: Running) -> None:
    head = (
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
        "Expect: 100-continue\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", keyed.server.http_port), PATIENCE_S) as raw:
        raw.sendall(head.encode())
        answer = b""
        while piece := raw.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in answer


def test_a_message_without_a_key_is_not_read(keyed: Running) -> None:
    big = pb.ModelInferRequest(model_name="echo", raw_input_contents=[b"x" * 2_000_000])
    raw = big.SerializeToString()  # above the limit of messages, which would be another code
    with grpc.insecure_channel(keyed.grpc_target) as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer").future(raw, timeout=PATIENCE_S)
        assert call.code() is grpc.StatusCode.UNAUTHENTICATED
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer").future(
            raw, timeout=PATIENCE_S, metadata=(("x-api-key", ANN),)
        )
        assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_browser_asks_for_the_rules_without_a_key_and_can_read_a_refusal(
    http: httpx.Client,
) -> None:
    asks = {"origin": ORIGIN, "access-control-request-method": "POST"}
    more = {"access-control-request-headers": "authorization"}
    preflight = http.options(INFER, headers={**asks, **more})
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-headers"] == "authorization"
    refused = http.post(INFER, json=infer_body("a"), headers={"origin": ORIGIN})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == ORIGIN
    foreign = http.options(INFER, headers={**asks, "origin": "https://evil.example"})
    assert foreign.status_code == 403
    no_page = http.options(INFER, headers={"access-control-request-method": "POST"})
    assert no_page.status_code == 401


def test_a_picture_is_fetched_by_its_secret_address_without_a_key(http: httpx.Client) -> None:
    body = {**PICTURE, "response_format": "url"}
    made = http.post("/v1/images/generations", json=body, headers=bearer(ANN))
    address = made.json()["data"][0]["url"].removeprefix("https://pictures.example.com")
    assert http.get(address).headers["content-type"] == "image/png"


# -- models ----------------------------------------------------------------------------------------
def test_a_key_for_some_models_is_refused_others_on_every_route_that_names_one(
    keyed: Running, http: httpx.Client
) -> None:
    checked = 0
    for route in routes(keyed):
        if route.path in OPEN_ROUTES or not {"model", "name"} & route.param_convertors.keys():
            continue
        path = re.sub(r"\{(model|name):model\}", "writer", route.path)
        for method in route.methods or ():
            reply = http.request(method, filled(path), headers=bearer(BOB), content=b"{}")
            assert reply.status_code == 403, (method, path)
            checked += 1
    assert checked >= 10
    chat = http.post("/v1/chat/completions", json=CHAT, headers=bearer(BOB))
    picture = http.post("/v1/images/generations", json=PICTURE, headers=bearer(BOB))
    assert (chat.status_code, picture.status_code) == (403, 403)
    assert chat.json()["error"]["code"] == "forbidden"
    assert infer_grpc(keyed, (("x-api-key", BOB),), "writer") is grpc.StatusCode.PERMISSION_DENIED
    with grpc.insecure_channel(keyed.grpc_target) as channel:
        for method, request in {
            "ModelMetadata": pb.ModelMetadataRequest(name="writer"),
            "RepositoryModelLoad": pb.RepositoryModelLoadRequest(model_name="writer"),
            "RepositoryModelUnload": pb.RepositoryModelUnloadRequest(model_name="writer"),
        }.items():
            call = channel.unary_unary(f"/{SERVICE}/{method}").future(
                request.SerializeToString(), metadata=(("x-api-key", BOB),), timeout=PATIENCE_S
            )
            assert call.code() is grpc.StatusCode.PERMISSION_DENIED, method
    assert http.post(INFER, json=infer_body("a"), headers=bearer(BOB)).status_code == 200


LISTS = ["/v1/models", "/v2/models", "/v2/repository/index", "/openapi.json"]


@pytest.mark.parametrize("path", LISTS)
def test_a_key_for_some_models_sees_no_others(http: httpx.Client, path: str) -> None:
    for _ in range(2):  # a page that is kept is not shown to another caller
        everything = http.get(path, headers=bearer(ANN)).text
        some = http.get(path, headers=bearer(BOB)).text
        assert "echo" in everything
        assert "writer" in everything
        assert "echo" in some
        assert "writer" not in some
        assert "artist" not in some


def test_the_document_says_which_operations_need_a_key(http: httpx.Client) -> None:
    document = http.get("/openapi.json", headers=bearer(ANN)).json()
    assert document["components"]["securitySchemes"].keys() == {"bearer", "x-api-key"}
    checked = set()
    for path, operations in document["paths"].items():
        for method in operations.keys() - {"servers"}:
            operation = operations[method]
            reply = http.request(method, path.replace("{name}", "echo"), content=b"{}")
            assert (reply.status_code == 401) is ("security" not in operation), path
            assert (reply.status_code != 401) or "401" in operation["responses"], path
            checked.add(reply.status_code == 401)
    assert checked == {True, False}
    with serving(echo()) as running, running.client() as without:
        plain = without.get("/openapi.json").json()
    assert plain["security"] == []
    assert "securitySchemes" not in plain["components"]


def test_an_unknown_model_is_not_told_the_names_of_others(http: httpx.Client) -> None:
    reply = http.get("/v2/models/nothing", headers=bearer(BOB))
    assert (reply.status_code, "writer" in reply.text) == (404, False)
    body = {"messages": CHAT["messages"]}
    assert "writer" not in http.post("/v1/chat/completions", json=body, headers=bearer(BOB)).text


# -- limits and secrets ----------------------------------------------------------------------------
def test_more_jobs_than_the_key_may_have_are_refused(keyed: Running, http: httpx.Client) -> None:
    too_many = http.post(INFER, json=infer_body("a", "b", "c"), headers=bearer(BOB))
    assert (too_many.status_code, "may have 2" in too_many.text) == (400, True)
    for _ in range(5):
        assert http.post(INFER, json=infer_body("a", "b"), headers=bearer(BOB)).status_code == 200
    keyed.wait_idle()
    assert metrics.caller_jobs.labels("bob")._value.get() == 0


RARELY = 0.01  # requests per minute: no pause between two calls makes a second one due
PERIOD_S = 60 / RARELY


def test_requests_beyond_the_rate_of_a_key_get_429_on_every_protocol(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    names = ("v2", "chat", "grpc")
    secrets = {name: new_key() for name in names}
    keys = [ApiKey(name, digest_of(secrets[name]), requests_per_minute=RARELY) for name in names]
    file.write_bytes(write_keys(keys))
    own = settings_of(file)
    models = [echo("echo", own), Writer("writer", words(), own)]
    with serving(*models, settings=own) as running, running.client() as http:
        posts = {"v2": (INFER, infer_body("a")), "chat": ("/v1/chat/completions", CHAT)}
        for name, (path, body) in posts.items():
            assert http.post(path, json=body, headers=bearer(secrets[name])).status_code == 200
            over = http.post(path, content=b"not read", headers=bearer(secrets[name]))
            assert (over.status_code, 1 <= int(over.headers["retry-after"]) <= PERIOD_S) == (
                429,
                True,
            )
            # what is no request for work is not counted
            assert http.get("/v2", headers=bearer(secrets[name])).status_code == 200
        error = over.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        metadata = (("x-api-key", secrets["grpc"]),)
        codes = [infer_grpc(running, metadata) for _ in range(2)]
        assert codes == [grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED]


def test_a_key_appears_in_no_log_metric_answer_or_description(
    keyed: Running, http: httpx.Client
) -> None:
    texts = []
    with logged(level=0) as lines:
        for headers in (bearer(ANN), {"x-api-key": BOB}, bearer(OLD)):
            for path, body in ((INFER, infer_body("a")), ("/v1/chat/completions", CHAT)):
                texts.append(http.post(path, json=body, headers=headers).text)
            infer_grpc(keyed, tuple(headers.items()))
            texts.append(http.get("/nowhere", headers=headers).text)
        keyed.wait_idle()
        registry = keyed.server.registry
        texts += [json.dumps(model.describe(), default=str) for model in registry.startable]
        texts += [http.get("/metrics").text, lines.text]
        texts.append(repr(vars(registry.callers)) + repr(vars(registry.callers.keys)))
    for key, secret in zip(KEYS, (ANN, BOB, OLD), strict=True):
        assert not any(secret in text or key.digest.hex() in text for text in texts)
        assert not any(repr(key.digest)[2:-1] in text for text in texts)


def test_the_engine_sees_the_keys_name_and_weight(keyed: Running, http: httpx.Client) -> None:
    (model,) = [each for each in keyed.server.registry.startable if each.name == "echo"]
    seen, submit = [], model.host.submit  # type: ignore[attr-defined]
    model.host.submit = lambda *a, **k: (seen.append(k["caller"]), submit(*a, **k))[1]  # type: ignore[attr-defined]
    http.post(INFER, json=infer_body("a"), headers=bearer(ANN))
    infer_grpc(keyed, (("x-api-key", BOB),))
    assert [(caller.name, caller.weight) for caller in seen] == [("ann", 2.0), ("bob", 1.0)]


def test_metrics_ask_for_a_key_where_the_operator_wants_that(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(write_keys(KEYS[:1]))
    own = settings_of(file, metrics_key=True)
    with serving(echo("echo", own), settings=own) as running, running.client() as http:
        for path in ("/metrics", "/metrics/"):
            assert http.get(path).status_code == 401
            assert http.get(path, headers=bearer(ANN)).status_code == 200
        assert http.get("/v2/health/ready").status_code == 200


# -- series ----------------------------------------------------------------------------------------
def test_a_flood_of_ten_thousand_callers_makes_no_series(keyed: Running) -> None:
    def series() -> set[str]:
        lines = [line for line in scrape.get("/metrics").text.splitlines() if line[:1] != "#"]
        return {line.rpartition(" ")[0] for line in lines}

    registry = keyed.server.registry
    with keyed.client() as scrape:
        scrape.post(INFER, json=infer_body("a"), headers=bearer(ANN))
        before = series()
        assert 'predictors_caller_requests_total{caller="ann",outcome="ok"}' in before
        from predictors.protocol.call import Call

        for i in range(10_000):  # the part of a request that depends on the caller
            call = Call({"x-api-key": f"wrong-{i}", "x-consumer": f"c{i}"}, protocol="v2_rest")
            registry.callers.name(call, f"10.0.{i // 256}.{i % 256}")
            assert registry.callers.refusal(call, INFER) is not None
        assert series() == before
