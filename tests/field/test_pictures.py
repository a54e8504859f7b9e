"""Pictures as people send them, over REST, gRPC and OpenAI chat, to the embedded checkpoint."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from predictors.__main__ import build
from predictors.protocol.kserve_sdk import pb, pb_grpc
from predictors.protocol.tasks import make_workers
from predictors.settings import ImageLimits, QwenVLSettings, Settings
from tests.http.echo import PATIENCE_S, Running, png, serving, small_settings

CHECKPOINT = Path(__file__).resolve().parents[2] / "checkpoints" / "shapes-qwen-vl"
SETTINGS = Settings(
    server=small_settings(server={"max_body_bytes": 8 * 2**20}).server,
    images=ImageLimits(max_pixels=4_000_000, max_images=4, max_aspect=300.0),
    qwen_vl=QwenVLSettings(slots=2, max_context=512),
)
GOOD = png(size=(64, 64))
DAMAGED = GOOD[:60]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A ready server with the model `qwen-vl`, its pictures decoded by worker processes."""
    workers = make_workers(SETTINGS.server)
    model = build("qwen-vl", CHECKPOINT, SETTINGS, workers)
    with closing(workers), serving(model, settings=SETTINGS, workers=workers) as running:  # type: ignore[arg-type]
        yield running


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[httpx.Client]:
    with running.client() as client:
        yield client


@pytest.fixture(scope="module")
def stub(running: Running) -> Iterator[Any]:
    with grpc.insecure_channel(running.grpc_target) as channel:
        yield pb_grpc.GRPCInferenceServiceStub(channel)


def base64_of(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def data_url(raw: bytes) -> str:
    return f"data:image/png;base64,{base64_of(raw)}"


def chat(client: httpx.Client, *urls: str, **more: Any) -> httpx.Response:
    """Ask about the pictures at `urls`, in the second message after a first one of text."""
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    turns = [
        {"role": "system", "content": "Answer shortly."},
        {"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]},
    ]
    body = {"model": "qwen-vl", "messages": turns, "max_tokens": 2, "temperature": 0, **more}
    return client.post("/v1/chat/completions", json=body)


def infer(client: httpx.Client, *texts: str) -> httpx.Response:
    """A V2 request in JSON with a row for each picture, given as text."""
    columns = {"prompt": ["What is it?"] * len(texts), "image": list(texts)}
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [len(texts)], "data": data}
        for name, data in columns.items()
    ]
    return client.post(
        "/v2/models/qwen-vl/infer", json={"inputs": inputs, "parameters": {"max_tokens": 2}}
    )


def infer_grpc(stub: Any, *files: bytes) -> Any:
    """A V2 request over gRPC with a row for each file."""
    request = pb.ModelInferRequest(model_name="qwen-vl")
    request.parameters["max_tokens"].int64_param = 2
    for name, rows in (("prompt", [b"What is it?"] * len(files)), ("image", files)):
        entry = request.inputs.add(name=name, datatype="BYTES", shape=[len(files)])
        entry.contents.bytes_contents.extend(rows)
    return stub.ModelInfer(request, timeout=PATIENCE_S)


def refused(reply: httpx.Response, status: int = 400) -> tuple[str, str]:
    """The message and `param` of an OpenAI error."""
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    return error["message"], error["param"]


# -- errors name their picture ---------------------------------------------------------------------
def test_a_chat_error_names_the_picture_that_can_t_be_read(client: httpx.Client) -> None:
    where = "messages[1].content[1].image_url"
    for n in (1, 2):
        message, param = refused(chat(client, data_url(GOOD), data_url(DAMAGED), n=n))
        assert message == f"{where} is damaged or cut short and can't be decoded"
        assert param == where


def test_a_chat_error_names_the_picture_that_is_too_large_or_too_thin(
    client: httpx.Client,
) -> None:
    where = "messages[1].content[2].image_url"
    for size, words in (((3000, 2000), "6000000 in all"), ((2010, 10), "can't be cut")):
        urls = [data_url(GOOD), data_url(png((0, 99, 0))), data_url(png(size=size))]
        message, param = refused(chat(client, *urls))
        assert message.startswith(where), message
        assert words in message
        assert param == where


def test_a_v2_error_names_the_row_and_the_input(client: httpx.Client, stub: Any) -> None:
    for rows in ([DAMAGED], [GOOD, DAMAGED], [GOOD, GOOD, DAMAGED]):
        expected = f"row {len(rows) - 1}: image is damaged or cut short and can't be decoded"
        reply = infer(client, *map(base64_of, rows))
        assert (reply.status_code, reply.json()["error"]) == (400, expected)
        with pytest.raises(grpc.RpcError) as caught:
            infer_grpc(stub, *rows)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == expected
