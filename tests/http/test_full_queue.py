"""A full queue answers before the body is read: what is refused costs no parsing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import grpc
import httpx
import pytest

from predictors.protocol import refusal_pace
from predictors.protocol.kserve_sdk import pb, pb_grpc
from predictors.protocol.refusal_pace import DELAY_S, RefusalPace
from tests.fakes import ScriptedEngine
from tests.http.echo import PATIENCE_S, Asking, Running, infer_body, serving, small_settings
from tests.http.openai_echo import Artist, Writer

ROUTES = (
    "/v2/models/writer/infer",
    "/v2/models/artist/infer",
    "/v1/chat/completions",
    "/v1/images/generations",
)


@contextmanager
def full(*writers: str) -> Iterator[Running]:
    """A server whose models have no place left; `artist` and each of `writers`."""
    settings = small_settings(queue={"capacity": 1})
    engines = [ScriptedEngine(slots=1) for _ in ("artist", *writers)]
    artist = Artist("artist", engines[0], settings)
    models = [artist, *(Writer(n, e, settings) for n, e in zip(writers, engines[1:], strict=True))]
    with serving(*models, settings=settings) as running, Asking(running) as asking:
        try:
            for model in models:
                path = f"/v2/models/{model.name}/infer"
                for name in ("running", "waiting"):
                    asking.call(lambda p=path, n=name: httpx.post(  # type: ignore[misc]
                        f"{running.url}{p}", json=infer_body(n), timeout=PATIENCE_S
                    ))  # fmt: skip
                model.wait_submitted(2)
            yield running
        finally:
            for engine in engines:
                engine.open()


def status_of_a_head(running: Running, path: str) -> bytes:
    """The status line for a request whose body never comes."""
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", running.server.http_port), PATIENCE_S) as sock:
        sock.sendall(f"{head}content-length: 500000\r\n\r\n".encode())
        return sock.recv(65_536)


@pytest.fixture(scope="module")
def one_of_each() -> Iterator[Running]:
    with full("writer") as running:
        yield running


@pytest.mark.parametrize("path", ROUTES)
def test_a_full_queue_refuses_before_the_body(one_of_each: Running, path: str) -> None:
    reply = status_of_a_head(one_of_each, path)
    assert reply.startswith(b"HTTP/1.1 503 "), reply
    assert b"\r\nretry-after: " in reply
    assert b"places are taken" in reply


def test_with_two_models_the_body_says_which_one_is_meant() -> None:
    with full("writer", "other") as running, running.client() as http:
        body = {"model": "nobody", "messages": [{"role": "user", "content": "a"}]}
        assert http.post("/v1/chat/completions", json=body).status_code == 404
        body["model"] = "other"
        assert http.post("/v1/chat/completions", json=body).status_code == 503


def test_the_refusal_is_counted_under_its_model(one_of_each: Running) -> None:
    with one_of_each.client() as http:
        http.post("/v1/chat/completions", json={})
        lines = http.get("/metrics").text.splitlines()
    wanted = ('model="writer"', 'operation="chat"', 'reason="queue_full"')
    counted = [line for line in lines if line.startswith("predictors_requests_total{")]
    found = [line for line in counted if all(label in line for label in wanted)]
    assert sum(float(line.rpartition(" ")[2]) for line in found) >= 1


def test_a_queue_with_places_reads_the_body() -> None:
    settings = small_settings()
    writer = Writer("writer", ScriptedEngine(), settings)
    with serving(writer, settings=settings) as running, running.client() as http:
        reply = http.post("/v1/chat/completions", json={"model": "writer"})
        assert reply.status_code == 400


def test_refusals_beyond_the_rate_are_late_over_both_protocols(
    one_of_each: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = lambda: 100.0  # noqa: E731
    monkeypatch.setattr(one_of_each.server.registry, "refusal_pace", RefusalPace(2.0, clock))
    late: list[float] = []

    async def sleep(seconds: float) -> None:
        late.append(seconds)

    monkeypatch.setattr(refusal_pace, "asyncio", SimpleNamespace(sleep=sleep))
    with one_of_each.client() as http:
        for _ in range(3):
            answer = http.post("/v2/models/writer/infer", json=infer_body("x"))
            assert answer.status_code == 503
    assert late == [DELAY_S]
    with grpc.insecure_channel(one_of_each.grpc_target) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as failure:
            stub.ModelInfer(pb.ModelInferRequest(model_name="writer"), timeout=PATIENCE_S)
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert late == [DELAY_S, DELAY_S]
