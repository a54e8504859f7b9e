"""The activator before the product's own server, which starts when it is woken: V2 over REST and
gRPC, an OpenAI stream, and twenty callers of all three at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import grpc
import pytest

from predictors.cli.child import held_ports
from predictors.protocol.kserve_sdk import pb, pb_grpc
from tests.activator.scripted import PATIENCE_S, Rig, activated
from tests.http.echo import echo, infer_body, serving, small_settings
from tests.http.openai_echo import Writer, words


@contextmanager
def asleep() -> Iterator[tuple[Rig, Callable[[], None]]]:
    """An activator before a server that is not there yet, and the function that starts it, which
    the activator calls when it wakes the model."""
    with ExitStack() as running, held_ports(2) as (http_port, grpc_port):
        settings = small_settings(server={"port": http_port, "grpc_port": grpc_port})

        def start() -> None:
            models = echo("echo", settings), Writer("writer", words(), settings)
            running.enter_context(serving(*models, settings=settings))

        target = f"127.0.0.1:{grpc_port}"
        with activated(grpc_target=target, http_port=http_port) as rig:
            rig.scale.on_wake = start
            yield rig, start


def ask_rest(rig: Rig) -> None:
    with rig.client() as http:
        reply = http.post("/v2/models/echo/infer", json=infer_body("hello"))
    assert reply.status_code == 200, reply.text
    assert {each["name"]: each["data"] for each in reply.json()["outputs"]}["echo"] == ["hello"]


def ask_sse(rig: Rig) -> None:
    body = {
        "model": "writer", "stream": True, "max_tokens": 3,
        "messages": [{"role": "user", "content": "hello"}],
    }  # fmt: skip
    with rig.client() as http, http.stream("POST", "/v1/chat/completions", json=body) as reply:
        lines = [line for line in reply.iter_lines() if line.startswith("data: ")]
    assert reply.status_code == 200, lines
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:-1]]
    assert len([each for each in chunks if each["delta"].get("content")]) == 3


def ask_grpc(rig: Rig) -> None:
    request = pb.ModelInferRequest(model_name="echo")
    tensor = request.inputs.add(name="prompt", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"hello")
    with grpc.insecure_channel(f"127.0.0.1:{rig.server.grpc_port}") as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(request, timeout=PATIENCE_S)
    assert "echo" in [output.name for output in answer.outputs]


WAYS = (ask_rest, ask_sse, ask_grpc)


@pytest.mark.parametrize("ask", WAYS, ids=lambda each: each.__name__)
def test_the_first_request_starts_the_server_and_is_answered(ask: Callable[[Rig], None]) -> None:
    with asleep() as (rig, _):
        ask(rig)
        assert rig.scale.replicas == 1


def test_twenty_callers_of_all_protocols_at_once_lose_nothing() -> None:
    with asleep() as (rig, start):
        rig.scale.on_wake = lambda: None
        asked = [rig.later(WAYS[number % len(WAYS)], rig) for number in range(20)]
        rig.scale.wait_held(20)
        start()
        for each in asked:
            each.result(PATIENCE_S)


def test_refusals_of_the_server_are_its_own() -> None:
    with asleep() as (rig, _):
        with rig.client() as http:
            missing = http.post("/v2/models/nothing/infer", json=infer_body("x"))
            huge = http.post("/v1/chat/completions", content=b"{" + b" " * 2**21)
        assert (missing.status_code, huge.status_code) == (404, 413)
        assert isinstance(huge.json()["error"], dict)
        with grpc.insecure_channel(f"127.0.0.1:{rig.server.grpc_port}") as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            request = pb.ModelInferRequest(model_name="nothing")
            with pytest.raises(grpc.RpcError) as refused:
                stub.ModelInfer(request, timeout=PATIENCE_S)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        assert "x-request-id" in dict(refused.value.trailing_metadata())
