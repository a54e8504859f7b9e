"""The questions that end-to-end tests ask both models, and what a right answer looks like.

Each is small, one step or a few tokens, since two cores draw.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
from PIL import Image

from predictors.protocol.kserve_sdk import pb, pb_grpc
from tests.e2e.traffic import Dial, Line

MODELS = ("flux", "qwen-vl")
PROMPT = "a large red circle on a white background"
REQUEST_ID = "x-request-id"
PATIENCE_S = 60.0


def picture_body(
    width: int = 64, height: int = 64, steps: int = 1, seed: int = 7, **more: int
) -> Any:
    """A V2 request for one picture; `more` are further parameters."""
    rows = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": [PROMPT]}
    sizes = {"width": width, "height": height, "num_inference_steps": steps, "seed": seed, **more}
    return {"inputs": [rows], "parameters": sizes}


def words_body(text: str = "Hello", max_tokens: int = 4) -> Any:
    """A V2 request for a few words about nothing."""
    rows = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": [text]}
    return {"inputs": [rows], "parameters": {"max_tokens": max_tokens, "temperature": 0}}


def png_of(answer: Any) -> bytes:
    """The file in a V2 answer."""
    (image,) = [o for o in answer["outputs"] if o["name"] == "image"]
    return base64.b64decode(image["data"][0])


def check_png(file: bytes, width: int, height: int) -> None:
    """Raise AssertionError unless `file` is a whole PNG of that size with more than one colour."""
    assert file.startswith(b"\x89PNG\r\n\x1a\n"), file[:16]
    with Image.open(io.BytesIO(file)) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.size == (width, height)
        lowest_highest = picture.convert("L").getextrema()
    assert lowest_highest[0] != lowest_highest[1], "every pixel is alike"


def checked(reply: httpx.Response) -> Any:
    """The JSON of a 200; raises AssertionError with status and body of anything else."""
    assert reply.status_code == 200, f"{reply.status_code}: {reply.text[:200]}"
    return reply.json()


# -- for traffic: each sends one question and checks its answer --------------------------------
async def draw(http: httpx.AsyncClient, question: str, side: int = 64, steps: int = 1) -> None:
    """One picture over V2 REST."""
    body = picture_body(side, side, steps)
    reply = await http.post("/v2/models/flux/infer", json=body, headers={REQUEST_ID: question})
    check_png(png_of(checked(reply)), side, side)


async def draw_long(http: httpx.AsyncClient, question: str) -> None:
    """One picture that takes a second or two."""
    await draw(http, question, side=128, steps=60)


async def write(http: httpx.AsyncClient, question: str) -> None:
    """A few words over V2 REST."""
    reply = await http.post(
        "/v2/models/qwen-vl/infer", json=words_body(), headers={REQUEST_ID: question}
    )
    outputs = {o["name"]: o["data"] for o in checked(reply)["outputs"]}
    assert outputs["completion_tokens"][0] >= 1, outputs


async def write_long(http: httpx.AsyncClient, question: str) -> None:
    """Two hundred tokens, whatever they say, which take a moment."""
    body = {
        "model": "qwen-vl",
        "messages": [{"role": "user", "content": "Tell me what you can do."}],
        "max_tokens": 200,
        "ignore_eos": True,
    }
    reply = await http.post("/v1/chat/completions", json=body, headers={REQUEST_ID: question})
    assert checked(reply)["usage"]["completion_tokens"] == 200


async def stream(http: httpx.AsyncClient, question: str) -> None:
    """A few words over OpenAI, streamed to `[DONE]`."""
    body = {
        "model": "qwen-vl",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 4,
        "stream": True,
    }
    sent = http.stream("POST", "/v1/chat/completions", json=body, headers={REQUEST_ID: question})
    async with sent as reply:
        lines = [line async for line in reply.aiter_lines() if line]
    assert reply.status_code == 200, f"{reply.status_code}: {lines[:1]}"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert lines[-1] == "data: [DONE]", lines[-1]
    assert not [event for event in events if "error" in event]
    assert any(event["choices"] for event in events)


def over_grpc(address: str) -> Dial:
    """Lines over V2 gRPC, one channel each, that ask for a few words."""

    @asynccontextmanager
    async def dial() -> AsyncIterator[Line]:
        # a pool of its own: channels of one process otherwise share their connections
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)

            async def line(question: str) -> None:
                request = pb.ModelInferRequest(model_name="qwen-vl", id=question)
                tensor = request.inputs.add(name="prompt", datatype="BYTES", shape=[1])
                tensor.contents.bytes_contents.append(b"Hello")
                request.parameters["max_tokens"].int64_param = 4
                answer = await stub.ModelInfer(request, timeout=PATIENCE_S)
                assert "text" in [output.name for output in answer.outputs], answer

            yield line

    return dial


# -- for a look: one answer, returned ----------------------------------------------------------
def caption(address: str, file: bytes, max_tokens: int = 16) -> str:
    """Qwen2.5-VL's answer about a picture, over V2 gRPC."""
    request = pb.ModelInferRequest(model_name="qwen-vl")
    for name, content in (("prompt", b"Describe this picture."), ("image", file)):
        tensor = request.inputs.add(name=name, datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(content)
    request.parameters["max_tokens"].int64_param = max_tokens
    with grpc.insecure_channel(address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(request, timeout=PATIENCE_S)
    place = [o.name for o in answer.outputs].index("text")
    raw: bytes = answer.raw_output_contents[place]
    return raw[4:].decode()  # behind four bytes of its length
