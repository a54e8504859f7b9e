"""A load generator that knows what became of each of its requests: one question per call, over V2
REST, V2 gRPC or OpenAI, its end written down under the reason that its own answer shows.
"""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc
import httpx

from predictors.protocol.kserve_sdk import pb, pb_grpc
from tests.observe.live import Live

TIMEOUT_S = 120.0
EXHAUSTED = {"queue_full", "oom"}  # which 503 is RESOURCE_EXHAUSTED over gRPC; others UNAVAILABLE
WORDS = (  # what a 503's message says; V2 has no code
    ("queue is full", "queue_full"),
    ("shutting down", "draining"),
    ("not ready", "not_ready"),
    ("memory", "oom"),
    ("failed while", "engine_failed"),
)
BY_STATUS = {
    200: "ok", 400: "invalid_input", 413: "too_large", 404: "not_found", 504: "deadline",
}  # fmt: skip
BY_GRPC = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 503,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.INTERNAL: 500,
}


class Kind(NamedTuple):
    """The labels by which the server counts a request."""

    model: str
    protocol: str
    operation: str
    reason: str


def reason_of(status: int, text: str) -> str:
    """The outcome as a caller can see it."""
    if status in BY_STATUS:
        return BY_STATUS[status]
    if status == 500:
        return "poisoned" if "this request made the engine fail" in text else "internal"
    assert status == 503, f"{status}: {text}"
    for word, reason in WORDS:
        if word in text:
            return reason
    raise AssertionError(f"a 503 that does not say why: {text}")


def reason_of_code(code: grpc.StatusCode, text: str) -> str:
    """The same over gRPC, whose code says of what is 503 elsewhere whether a smaller load helps."""
    reason = reason_of(BY_GRPC[code], text)
    is_exhausted = code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert is_exhausted == (reason in EXHAUSTED), f"{code} for {reason}: {text}"
    return reason


def picture(steps: int = 2, prompt: str = "a red circle", **parameters: Any) -> dict[str, Any]:
    """A V2 request for one picture of 64x64."""
    size = {"width": 64, "height": 64, "num_inference_steps": steps}
    return {"inputs": [rows(prompt)], "parameters": size | parameters}


def words(tokens: int = 4, prompt: str = "Hello", **parameters: Any) -> dict[str, Any]:
    """A V2 request for so many tokens."""
    chosen = {"max_tokens": tokens, "temperature": 0}
    return {"inputs": [rows(prompt)], "parameters": chosen | parameters}


def rows(*texts: str) -> dict[str, Any]:
    """The input `prompt`."""
    return {"name": "prompt", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}


def generations(steps: int = 2, prompt: str = "a red circle", **more: Any) -> dict[str, Any]:
    """An OpenAI request for one picture."""
    return {"model": "flux", "prompt": prompt, "size": "64x64", "num_inference_steps": steps,
            "response_format": "b64_json", **more}  # fmt: skip


def chat(tokens: int = 4, text: Any = "Hello", **more: Any) -> dict[str, Any]:
    """An OpenAI request for so many tokens."""
    messages = [{"role": "user", "content": text}]
    return {"model": "qwen-vl", "messages": messages, "max_tokens": tokens, "temperature": 0,
            "ignore_eos": True, **more}  # fmt: skip


PATHS = {"images": "/v1/images/generations", "chat": "/v1/chat/completions"}


class Clients:
    """`seen` counts what became of each request. Methods: any thread, one request each, which block
    until its end is known; they return its reason."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._http = httpx.Client(base_url=live.url, timeout=TIMEOUT_S)
        self._channel = grpc.insecure_channel(live.grpc_target)
        self._grpc = pb_grpc.GRPCInferenceServiceStub(self._channel)
        self._lock = threading.Lock()
        self.seen: Counter[Kind] = Counter()

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *error: object) -> None:
        self._http.close()
        self._channel.close()

    def rest(self, model: str, body: Any, **headers: str) -> str:
        """V2 over REST."""
        told = {"content-type": "application/json", **headers}
        reply = self._http.post(f"/v2/models/{model}/infer", content=json.dumps(body), headers=told)
        return self._note(model, "v2_rest", "infer", reason_of(reply.status_code, reply.text))

    def openai(self, operation: str, body: Any, **headers: str) -> str:
        """OpenAI, not streamed."""
        reply = self._http.post(PATHS[operation], json=body, headers=headers)
        reason = reason_of(reply.status_code, reply.text)
        return self._note(body["model"], "openai", operation, reason)

    def stream(self, body: Any) -> str:
        """OpenAI chat, streamed to its end."""
        asked = {"stream": True, **body}
        with self._http.stream("POST", PATHS["chat"], json=asked) as reply:
            text = reply.read().decode()
        ended = reply.status_code != 200 or text.rstrip().endswith("[DONE]")
        assert ended, text[-300:]
        return self._note("qwen-vl", "openai", "chat", reason_of(reply.status_code, text))

    def grpc(self, model: str, body: Any) -> str:
        """V2 over gRPC."""
        try:
            self._grpc.ModelInfer(as_proto(model, body), timeout=TIMEOUT_S)
            reason = "ok"
        except grpc.RpcError as error:
            reason = reason_of_code(error.code(), error.details())
        return self._note(model, "v2_grpc", "infer", reason)

    # -- callers that leave; the body of `with` is where they are still there ---------------------
    @contextmanager
    def leaving_http(self, path: str, kind: Kind, body: Any) -> Iterator[None]:
        """A request over HTTP whose connection is closed after the block, counted as `kind`."""
        raw = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            f"content-length: {len(raw)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", self._live.port), timeout=TIMEOUT_S) as sock:
            sock.sendall(head.encode() + raw)
            yield
        self._note(*kind)

    @contextmanager
    def leaving_grpc(self, model: str, body: Any) -> Iterator[None]:
        """A request over gRPC that is cancelled after the block."""
        asked = self._grpc.ModelInfer.future(as_proto(model, body), timeout=TIMEOUT_S)
        yield
        assert asked.cancel(), "it was over before it could be cancelled"
        self._note(model, "v2_grpc", "infer", "cancelled")

    def _note(self, *kind: str) -> str:
        with self._lock:
            self.seen[Kind(*kind)] += 1
        return kind[-1]


def as_proto(model: str, body: Any) -> pb.ModelInferRequest:
    """The same V2 request for gRPC."""
    request = pb.ModelInferRequest(model_name=model)
    for column in body["inputs"]:
        tensor = request.inputs.add(**{k: column[k] for k in ("name", "datatype", "shape")})
        tensor.contents.bytes_contents.extend(text.encode() for text in column["data"])
    fields = {bool: "bool_param", int: "int64_param", str: "string_param"}
    for name, value in body.get("parameters", {}).items():
        setattr(request.parameters[name], fields[type(value)], value)
    return request


def counted(live: Live) -> Counter[Kind]:
    """The server's counts, without those that are 0."""
    found: Counter[Kind] = Counter()
    for labels, value in live.samples("predictors_requests_total").items():
        if value:
            found[Kind(**dict(labels))] = round(value)
    return found
