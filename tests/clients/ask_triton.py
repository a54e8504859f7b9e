"""tritonclient: compressed requests and answers over HTTP, pings during pictures over gRPC."""

from __future__ import annotations

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


if __name__ == "__main__":
    report.run(
        {
            "plain": lambda: described(None),
            "gzip": lambda: described("gzip"),
            "deflate": lambda: described("deflate"),
            "pings": pinged,
        }
    )
