"""Every protocol hands its requests to the engine under the caller's name, weight and priority."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import grpc
import httpx
import pytest

from predictors.protocol.call import SINGLE_HEADERS
from predictors.protocol.kserve_sdk import pb, pb_grpc
from predictors.serving.accounts import Caller
from predictors.settings import AccessSettings, Settings
from tests.fakes import EchoEngine
from tests.http.echo import PATIENCE_S, Running, echo, infer_body, serving, small_settings
from tests.http.openai_echo import Artist, Writer, words

ADDRESS = "127.0.0.1"
CHAT = {"model": "writer", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
PICTURE = {"model": "artist", "prompt": "a"}

Ask = Callable[[dict[str, str]], int]
"""Sends one request with these headers; the HTTP status of the answer."""


def settings(**access: Any) -> Settings:
    return replace(small_settings(), access=AccessSettings(**access))


class Serving:
    """A server with one model per protocol, and the callers that their hosts saw."""

    def __init__(self, running: Running, models: list[Any]) -> None:
        self.running = running
        self.seen: list[Caller] = []
        for model in models:
            submit = model.host.submit
            model.host.submit = lambda *a, submit=submit, **k: (
                self.seen.append(k["caller"]),
                submit(*a, **k),
            )[1]

    def rest(self, headers: dict[str, str], **body: Any) -> int:
        return self._post("/v2/models/echo/infer", infer_body("a", **body), headers)

    def chat(self, headers: dict[str, str]) -> int:
        return self._post("/v1/chat/completions", CHAT, headers)

    def stream(self, headers: dict[str, str]) -> int:
        return self._post("/openai/v1/chat/completions", {**CHAT, "stream": True}, headers)

    def images(self, headers: dict[str, str]) -> int:
        return self._post("/v1/images/generations", PICTURE, headers)

    def grpc(self, headers: dict[str, str], **parameters: Any) -> int:
        asked = pb.ModelInferRequest(model_name="echo")
        tensor = asked.inputs.add(name="prompt", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(b"a")
        for name, value in parameters.items():
            asked.parameters[name].MergeFromString(value)
        with grpc.insecure_channel(self.running.grpc_target) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            call = stub.ModelInfer.future(
                asked, metadata=tuple(headers.items()), timeout=PATIENCE_S
            )
            return {grpc.StatusCode.OK: 200, grpc.StatusCode.INVALID_ARGUMENT: 400}[call.code()]

    def _post(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> int:
        reply = httpx.post(self.running.url + path, json=body, headers=headers, timeout=PATIENCE_S)
        return reply.status_code


PROTOCOLS = ("rest", "chat", "stream", "images", "grpc")


@pytest.fixture(scope="module", params=["header", "proxies"])
def server(request: pytest.FixtureRequest) -> Iterator[Serving]:
    """Set up for a gateway that names callers, or for one that forwards their addresses."""
    access = {"caller_header": "x-consumer"}
    if request.param == "proxies":
        access = {"trusted_proxies": "127.0.0.0/8"}
    own = settings(**access)
    models = [
        echo("echo", own),
        Writer("writer", words(), own),
        Artist("artist", EchoEngine(), own),
    ]
    with serving(*models, settings=own) as running:
        yield Serving(running, models)


@pytest.fixture
def name_header(server: Serving) -> str:
    names = server.running.server.registry.settings.access
    return names.caller_header or "x-forwarded-for"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_caller_is_named_by_gateway_or_address(
    server: Serving, name_header: str, protocol: str
) -> None:
    ask: Ask = getattr(server, protocol)
    server.seen.clear()
    assert ask({name_header: "203.0.113.5"}) == 200
    assert ask({}) == 200
    assert server.seen == [Caller("203.0.113.5"), Caller(ADDRESS)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_priority_header_holds_on_every_protocol(server: Serving, protocol: str) -> None:
    ask: Ask = getattr(server, protocol)
    server.seen.clear()
    assert [ask({"x-request-priority": level}) for level in ("1", "0", "9")] == [200] * 3
    assert [caller.priority for caller in server.seen] == [4, 0, -4]
    assert ask({"x-request-priority": "first"}) == 400
    assert len(server.seen) == 3


def test_the_v2_parameter_priority_comes_before_the_header(server: Serving) -> None:
    server.seen.clear()
    header = {"x-request-priority": "9"}
    assert server.rest(header, parameters={"priority": 1}) == 200
    assert server.rest({}, parameters={"priority": "2"}) == 200
    assert server.grpc(header, priority=b"\x28\x01") == 200  # uint64_param, as tritonclient sends
    assert server.grpc({}, priority=b"\x10\x02") == 200  # int64_param
    assert [caller.priority for caller in server.seen] == [4, 3, 4, 3]


@pytest.mark.parametrize("bad", [-1, 1.5, True, "first", ""])
def test_a_priority_that_is_none_is_refused(server: Serving, bad: object) -> None:
    assert server.rest({}, parameters={"priority": bad}) == 400


@pytest.mark.parametrize("bad", [b"\x10" + b"\xff" * 9 + b"\x01", b"\x1a\x05first", b"\x08\x01"])
def test_a_priority_that_is_none_is_refused_over_grpc(server: Serving, bad: bytes) -> None:
    assert server.grpc({}, priority=bad) == 400


def test_several_lines_of_forwarded_addresses_are_one_list(
    server: Serving, name_header: str
) -> None:
    """Over HTTP/1. gRPC itself keeps the last line, which the nearest proxy wrote."""
    server.seen.clear()
    lines = [("x-forwarded-for", "203.0.113.5"), ("X-Forwarded-For", "127.0.0.9")]
    url = f"{server.running.url}/v2/models/echo/infer"
    assert httpx.post(url, json=infer_body("a"), headers=lines, timeout=PATIENCE_S).is_success
    expected = "203.0.113.5" if name_header == "x-forwarded-for" else ADDRESS
    assert [caller.name for caller in server.seen] == [expected]


@pytest.mark.parametrize("name", sorted(SINGLE_HEADERS - {"content-type"}))
def test_two_headers_of_which_one_counts_are_refused_where_they_differ(
    server: Serving, name: str
) -> None:
    """A proxy may have gone by the other one."""
    server.seen.clear()
    url, body = f"{server.running.url}/v2/models/echo/infer", json.dumps(infer_body("a"))
    first = str(len(body)) if "length" in name else "60000"
    for second, status in ((first, 200), ("9", 400)):
        lines = [(name, first), (name.upper(), second), ("content-type", "application/json")]
        answer = httpx.post(url, content=body, headers=lines, timeout=PATIENCE_S)
        assert answer.status_code == status
    assert answer.json() == {
        "error": f"the request has two {name} headers with different values; send one"
    }
    with grpc.insecure_channel(server.running.grpc_target) as channel:
        asked = pb.ModelInferRequest(model_name="echo")
        asked.inputs.add(name="prompt", datatype="BYTES", shape=[1]).contents.bytes_contents.append(
            b"a"
        )
        call = pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer.future(
            asked, metadata=((name, "60000"), (name, "50000")), timeout=PATIENCE_S
        )
        assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "path",
    ["inference.GRPCInferenceService/ServerLive", "inference.GRPCInferenceService/ServerReady",
     "inference.GRPCInferenceService/ServerMetadata", "inference.GRPCInferenceService/ModelReady",
     "grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch",
     "grpc.reflection.v1.ServerReflection/ServerReflectionInfo"],
)  # fmt: skip
def test_grpc_methods_that_need_no_model_refuse_such_headers_too(
    server: Serving, path: str
) -> None:
    asked = b"\x0a\x04echo" if path.endswith("ModelReady") else b""
    same, different = [(("x-request-timeout-ms", x), ("x-request-timeout-ms", "60000"))
                       for x in ("60000", "50000")]  # fmt: skip
    with grpc.insecure_channel(server.running.grpc_target) as channel:
        method = channel.stream_stream(f"/{path}")
        assert next(iter(method(iter([asked]), metadata=same, timeout=PATIENCE_S))) is not None
        with pytest.raises(grpc.RpcError, match="two x-request-timeout-ms headers") as caught:
            list(method(iter([asked]), metadata=different, timeout=PATIENCE_S))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "x-request-id" in dict(caught.value.trailing_metadata())


def test_two_content_types_are_refused(server: Serving) -> None:
    url = f"{server.running.url}/v1/chat/completions"
    lines = [("content-type", "application/json"), ("Content-Type", "multipart/form-data")]
    answer = httpx.post(url, content=b"{}", headers=lines, timeout=PATIENCE_S)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "content-type"
