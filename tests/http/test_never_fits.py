"""Requests that alone have more bytes than all together may have: refused for good, and at once."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
import httpx
import pytest

from predictors import metrics
from predictors.protocol.bytes_in_flight import UNCOUNTED_BYTES
from predictors.protocol.kserve_sdk import pb, pb_grpc
from predictors.protocol.overload import REFUSE_LARGE, Monitor
from tests.http.echo import CALM, PATIENCE_S, Running, echo, infer_body, serving, small_settings
from tests.http.openai_echo import Writer, words
from tests.http.test_overload import Watch

LIMIT = 100_000
MOST = LIMIT + UNCOUNTED_BYTES
INFER, CHAT = "/v2/models/echo/infer", "/v1/chat/completions"


@contextmanager
def server(refuse_at: float) -> Iterator[Running]:
    """A server whose overload gate refuses at this pressure; 0 is never."""
    settings = small_settings(server={"max_bytes_in_flight": LIMIT})
    settings = replace(settings, overload=replace(CALM, refuse_at=refuse_at))
    models = [echo("echo", settings), Writer("writer", words(), settings)]
    with serving(*models, settings=settings) as found:
        yield found
        assert found.server.registry.bytes_in_flight.used == 0


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """Its gate would go on to refuse for a moment after a body that takes all the bytes."""
    with server(refuse_at=0.0) as found:
        yield found


def body_of(path: str, num_bytes: int) -> bytes:
    """A valid body of so many bytes."""

    def made(text: str) -> bytes:
        chat = {"model": "writer", "messages": [{"role": "user", "content": text}]}
        return json.dumps(infer_body(text) if path == INFER else chat).encode()

    raw = made("x" * (num_bytes - len(made(""))))
    assert len(raw) == num_bytes
    return raw


def check_refused(path: str, status: int, body: Any, numbers: str) -> None:
    assert status == 413
    error = body["error"]
    if path == CHAT:
        assert error["code"] == "content_too_large"
        error = error["message"]
    assert numbers in error


def answer_to_head(running: Running, path: str, num_bytes: int) -> tuple[int, bytes, Any]:
    """Status, head and body of the answer to a request of which only the head is sent."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {num_bytes}\r\n\r\n"
    address = ("127.0.0.1", running.server.http_port)
    with socket.create_connection(address, PATIENCE_S) as sock:
        sock.sendall(head.encode())
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    found, _, body = answer.partition(b"\r\n\r\n")
    return int(found.split()[1]), found.lower(), json.loads(body)


@pytest.mark.parametrize("path", [INFER, CHAT])
def test_a_body_that_never_fits_is_413_with_both_numbers_by_its_head(
    running: Running, path: str
) -> None:
    status, head, body = answer_to_head(running, path, MOST + 1)
    check_refused(path, status, body, f"the limit of {MOST} bytes: it has {MOST + 1}")
    assert b"retry-after" not in head


@pytest.mark.parametrize("path", [INFER, CHAT])
def test_a_body_of_unknown_size_is_413_at_its_first_byte_too_many(
    running: Running, path: str
) -> None:
    with running.client() as http:
        reply = http.post(path, content=iter([body_of(path, MOST + 1)]))
    check_refused(path, reply.status_code, reply.json(), f"the limit of {MOST} bytes: it has at")
    assert "retry-after" not in reply.headers


@pytest.mark.parametrize("path", [INFER, CHAT])
def test_a_body_that_just_fits_is_answered(running: Running, path: str) -> None:
    with running.client() as http:
        assert http.post(path, content=body_of(path, MOST)).status_code == 200


def test_a_compressed_body_counts_with_what_it_becomes(running: Running) -> None:
    """While it is inflated both are held."""
    packed = gzip.compress(body_of(INFER, 2 * MOST // 3), 0)  # no smaller
    with running.client() as http:
        reply = http.post(INFER, content=packed, headers={"content-encoding": "gzip"})
    assert reply.status_code == 413
    assert f"at most {MOST} are taken for one" in reply.json()["error"]
    assert "retry-after" not in reply.headers


def infer_message(num_bytes: int) -> pb.ModelInferRequest:
    """A valid message of at least so many bytes."""
    asked = pb.ModelInferRequest(model_name="echo")
    tensor = asked.inputs.add(name="prompt", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"x" * num_bytes)
    return asked


def grpc_refusal(running: Running, num_bytes: int) -> tuple[grpc.StatusCode, str, dict[str, Any]]:
    with grpc.insecure_channel(running.grpc_target) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as failure:
            stub.ModelInfer(infer_message(num_bytes), timeout=PATIENCE_S)
    error = failure.value
    return error.code(), error.details(), dict(error.trailing_metadata())


def test_a_message_that_never_fits_is_refused_for_good_and_counted(running: Running) -> None:
    counter = metrics.requests_total.labels("unknown", "v2_grpc", "infer", "too_large")
    before = counter._value.get()
    size = infer_message(MOST).ByteSize()
    code, words, trailing = grpc_refusal(running, MOST)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"takes {size} bytes; at most {MOST} are taken for one" in words
    assert "retry-after" not in trailing
    assert counter._value.get() == before + 1


def test_a_server_that_refuses_large_requests_for_now_refuses_these_for_good() -> None:
    with server(CALM.refuse_at) as running:
        watch = Watch(running)
        watch.gate.watch(Monitor("memory", lambda: 1.0, {REFUSE_LARGE}))
        watch.wait("is_refusing")
        for path in (INFER, CHAT):
            status, head, _ = answer_to_head(running, path, MOST)
            assert status == 503
            assert b"retry-after" in head
            status, _, body = answer_to_head(running, path, MOST + 1)
            check_refused(path, status, body, f"it has {MOST + 1}")
        assert "retry-after" in grpc_refusal(running, MOST // 2 + UNCOUNTED_BYTES // 2)[2]
        assert "retry-after" not in grpc_refusal(running, MOST)[2]
        with running.client() as http:  # small ones pass meanwhile
            reply: httpx.Response = http.post(INFER, json=infer_body())
        assert reply.status_code == 200
