"""One right answer of each kind from an installation, however it was installed: a V2 REST picture,
a V2 gRPC caption of it, an OpenAI stream through the Service, and the same by DNS name from a pod.

Each raises AssertionError when the answer is not the right one.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
from openai import OpenAI

from tests.e2e import asks
from tests.e2e.inside import STREAM, run_inside
from tests.e2e.kube import Kube

CHAT: dict[str, Any] = {
    "model": "qwen-vl",
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 8,
    "stream": True,
}


def draw(kube: Kube, width: int, height: int, steps: int = 2) -> bytes:
    """A PNG of that size, over V2 REST through the Service."""
    reply = httpx.post(
        f"{kube.url('flux')}/v2/models/flux/infer",
        json=asks.picture_body(width, height, steps),
        timeout=asks.PATIENCE_S,
        trust_env=False,
    )
    file = asks.png_of(asks.checked(reply))
    asks.check_png(file, width, height)
    return file


def describe(kube: Kube) -> str:
    """The language model's answer over V2 gRPC about the other one's picture of the prompt."""
    file = draw(kube, 128, 128, steps=28)
    address, ports = kube.service("qwen-vl")
    words = asks.caption(f"{address}:{ports['h2c']}", file)
    assert "red" in words, words
    assert "circle" in words, words
    return words


def stream(kube: Kube) -> str:
    """The text that OpenAI's own client reads of a streamed chat through the Service."""
    with (
        httpx.Client(trust_env=False) as http,
        OpenAI(base_url=f"{kube.url('qwen-vl')}/v1", api_key="none", http_client=http) as client,
    ):
        chunks = list(client.chat.completions.create(**CHAT))
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said
    assert chunks[-1].choices[0].finish_reason in {"stop", "length"}
    return said


def stream_by_name(kube: Kube) -> str:
    """The same stream as a pod of the namespace reads it, which asks the cluster's DNS."""
    host = f"qwen-vl-predictor.{kube.namespace}.svc.cluster.local"
    url = f"http://{host}/v1/chat/completions"
    status, *events = run_inside(kube, STREAM, url, json.dumps(CHAT)).splitlines()
    assert status == "200", events
    assert events[-1] == "data: [DONE]", events
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    deltas = [c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]]
    said = "".join(deltas)
    assert said
    return said
