"""tritonclient: compressed requests and answers over HTTP, pings during pictures over gRPC."""

from __future__ import annotations

import queue
import sys
import time
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http

from tests.clients import report

GRPC_TARGET = sys.argv[3] if len(sys.argv) > 3 else ""
PING_MS = 5500  # the server takes a ping every 5 s
PING_FOR_S = 30.0  # five pings: gRPC ends a connection at the third that comes too early
MOST_PICTURES = 40


def text_input(module: Any, name: str, value: bytes) -> Any:
    tensor = module.InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([value], dtype=np.object_))
    return tensor


def described(method: str | None) -> Any:
    module = tritonclient.http
    with module.InferenceServerClient(
        report.URL.removeprefix("http://"),
        connection_timeout=report.TIMEOUT_S,
        network_timeout=report.TIMEOUT_S,
    ) as client:
        result = client.infer(
            report.MODEL,
            [
                text_input(module, "prompt", report.QUESTION.encode()),
                text_input(module, "image", report.picture()),
            ],
            request_compression_algorithm=method,
            response_compression_algorithm=method,
            parameters={"max_tokens": report.TOKENS, "temperature": 0, "seed": 1},
        )
        return {"text": result.as_numpy("text")[0].decode()}


def pinged() -> Any:
    """Draw on one connection that pings until it has pinged often enough."""
    module = tritonclient.grpc
    options = module.KeepAliveOptions(
        keepalive_time_ms=PING_MS,
        keepalive_timeout_ms=20_000,
        keepalive_permit_without_calls=True,
        http2_max_pings_without_data=0,
    )
    started, pictures = time.monotonic(), 0
    with module.InferenceServerClient(GRPC_TARGET, keepalive_options=options) as client:
        while time.monotonic() - started < PING_FOR_S and pictures < MOST_PICTURES:
            result = client.infer(
                "flux",
                [text_input(module, "prompt", b"a red circle")],
                parameters={"width": 384, "height": 384, "num_inference_steps": 100, "seed": 3},
                client_timeout=report.TIMEOUT_S,
            )
            assert result.as_numpy("image")[0].startswith(b"\x89PNG")
            pictures += 1
    return {"pictures": pictures, "seconds": time.monotonic() - started}


def streamed() -> Any:
    """A picture with previews and a description, at once on one stream."""
    module, found = tritonclient.grpc, queue.Queue[Any]()
    asked = {
        "flux": (
            [text_input(module, "prompt", b"a red circle")],
            {"width": 64, "height": 64, "num_inference_steps": 4, "seed": 3, "partial_images": 2},
        ),
        report.MODEL: (
            [
                text_input(module, "prompt", report.QUESTION.encode()),
                text_input(module, "image", report.picture()),
            ],
            {"max_tokens": report.TOKENS, "temperature": 0, "seed": 1, "stream": True},
        ),
    }
    parts: dict[str, list[Any]] = {name: [] for name in asked}
    open_ = set(asked)
    with module.InferenceServerClient(GRPC_TARGET) as client:
        client.start_stream(lambda result, error: found.put(error or result))
        for name, (inputs, parameters) in asked.items():
            client.async_stream_infer(name, inputs, request_id=name, parameters=parameters)
        while open_:
            got = found.get(timeout=report.TIMEOUT_S)
            if isinstance(got, Exception):
                raise got
            response = got.get_response()
            parts[response.id].append(got)
            if response.parameters["triton_final_response"].bool_param:
                open_.remove(response.id)
        client.stop_stream()
    files = [part.as_numpy("image")[0] for part in parts["flux"]]
    text = b"".join(part.as_numpy("text")[0] for part in parts[report.MODEL]).decode()
    return {"files": len(set(files)), "png": files[-1].startswith(b"\x89PNG"), "text": text}


if __name__ == "__main__":
    report.run(
        {
            "plain": lambda: described(None),
            "gzip": lambda: described("gzip"),
            "deflate": lambda: described("deflate"),
            "pings": pinged,
            "streamed": streamed,
        }
    )
