"""How large pictures are read, as callers ask for it over REST, gRPC and OpenAI chat, of the
embedded checkpoint with its default settings."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from PIL import Image

from predictors.__main__ import build
from predictors.chat.inputs import ChatPreparer
from predictors.chat.predictor import ChatPredictor
from predictors.chat.request import Picture
from predictors.models.qwen2_5_vl.model import Qwen25VLModel
from predictors.protocol.kserve_sdk import pb, pb_grpc
from predictors.protocol.tasks import make_workers
from predictors.settings import ImageLimits, QwenVLSettings, Settings
from tests.http.echo import CALM, Running, serving, small_settings

CHECKPOINT = Path(__file__).resolve().parents[2] / "checkpoints" / "shapes-qwen-vl"
SETTINGS = Settings(
    server=small_settings(server={"max_body_bytes": 8 * 2**20}).server, overload=CALM
)
OPERATORS = 1_103_872  # what the default setting allows
MEGAPIXEL = {"width": 1036, "height": 1036, "tokens": 1369}
LOW = {"width": 504, "height": 504, "tokens": 324}


@pytest.fixture(scope="module")
def model() -> Iterator[ChatPredictor]:
    workers = make_workers(SETTINGS.server)
    with closing(workers):
        made = build("qwen-vl", CHECKPOINT, SETTINGS, workers)
        assert isinstance(made, ChatPredictor)
        yield made


@pytest.fixture(scope="module")
def running(model: ChatPredictor) -> Iterator[Running]:
    with serving(model, settings=SETTINGS, workers=model.workers) as running:  # type: ignore[arg-type]
        yield running


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[httpx.Client]:
    with running.client() as client:
        yield client


def png(width: int, height: int, level: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (90, 120, level)).save(file, "PNG")
    return file.getvalue()


def part(file: bytes, detail: str | None = None, **own: int) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(file).decode()}"
    return {"type": "image_url", "image_url": {"url": url, "detail": detail}, **own}


def chat(client: httpx.Client, *parts: dict[str, Any], **fields: Any) -> httpx.Response:
    content = [*parts, {"type": "text", "text": "What is it?"}]
    body = {"model": "qwen-vl", "messages": [{"role": "user", "content": content}]}
    return client.post("/v1/chat/completions", json=body | {"max_tokens": 1} | fields)


def sizes(answer: httpx.Response) -> Any:
    return answer.raise_for_status().json()["usage"]["prompt_images"]


def refused(answer: httpx.Response) -> tuple[Any, str]:
    error = answer.json()["error"]
    assert answer.status_code == 400, error
    return error["param"], error["message"]


MEGAPIXEL_FILE, SQUARE_FILE = png(1024, 1024), png(600, 600)


def test_a_megapixel_is_not_shrunk_by_default_and_its_tokens_are_those_of_the_prompt(
    client: httpx.Client,
) -> None:
    answer = chat(client, part(MEGAPIXEL_FILE))
    assert sizes(answer) == [MEGAPIXEL]
    small = chat(client, part(MEGAPIXEL_FILE, "low"))
    assert sizes(small) == [LOW]
    prompt, other = (each.json()["usage"]["prompt_tokens"] for each in (answer, small))
    assert prompt - other == 1369 - 324


@pytest.mark.parametrize("size", [(4032, 3024), (2480, 3508)])
def test_a_photo_and_a_page_are_read_up_to_the_operators_pixels(
    client: httpx.Client, size: tuple[int, int]
) -> None:
    (found,) = sizes(chat(client, part(png(*size))))
    assert 0.9 * OPERATORS < found["width"] * found["height"] <= OPERATORS
    assert found["tokens"] * 784 == found["width"] * found["height"]
    assert found["width"] / found["height"] == pytest.approx(size[0] / size[1], rel=0.05)


@pytest.mark.parametrize(
    ("fields", "own", "tokens"),
    [
        ({}, {}, 441),
        ({"max_pixels": 50_000}, {}, 49),
        ({"mm_processor_kwargs": {"max_pixels": 50_000}}, {}, 49),
        ({"mm_processor_kwargs": {"size": {"longest_edge": 50_000}}}, {}, 49),
        ({"mm_processor_kwargs": {"min_pixels": 10**6}}, {}, 36 * 36),
        ({"max_pixels": 200_000}, {"max_pixels": 50_000}, 49),
        ({"max_pixels": 50_000}, {"detail": "auto"}, 49),
        ({"max_pixels": 50_000}, {"detail": "low"}, 324),
        ({"max_pixels": 50_000}, {"detail": "high"}, 441),
        ({"max_pixels": 50_000}, {"detail": "original"}, 441),
        ({}, {"detail": "low", "max_pixels": 50_000}, 49),
        ({}, {"min_pixels": 1, "max_pixels": 784}, 1),
    ],
)
def test_every_way_to_ask_for_pixels_is_answered_with_the_size(
    client: httpx.Client, fields: dict[str, Any], own: dict[str, Any], tokens: int
) -> None:
    (found,) = sizes(chat(client, part(SQUARE_FILE, **own), **fields))
    assert found["tokens"] == tokens


def test_sizes_stand_in_the_order_of_the_prompt_and_once_for_all_choices(
    client: httpx.Client,
) -> None:
    parts = part(SQUARE_FILE, "low"), part(png(60, 90), max_pixels=5000), part(SQUARE_FILE)
    answer = chat(client, *parts, n=2)
    assert sizes(answer) == [
        LOW,
        {"width": 56, "height": 84, "tokens": 6},
        {"width": 588, "height": 588, "tokens": 441},
    ]


def test_a_text_alone_has_no_sizes_and_its_pixels_are_checked_all_the_same(
    client: httpx.Client,
) -> None:
    usage = chat(client, max_pixels=5000).raise_for_status().json()["usage"]
    assert set(usage) == {"prompt_tokens", "completion_tokens", "total_tokens"}
    assert refused(chat(client, max_pixels=OPERATORS + 1))[0] == "max_pixels"


def test_a_stream_says_the_sizes_in_its_last_usage(client: httpx.Client) -> None:
    for options in ({"include_usage": True}, {"include_usage": False}):
        asked = {"stream": True, "stream_options": options}
        answer = chat(client, part(SQUARE_FILE, "low"), max_tokens=3, **asked).raise_for_status()
        lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
        said = [json.loads(line).get("usage") for line in lines]
        found = [usage["prompt_images"] for usage in said if usage]
        assert found == ([[LOW]] if options["include_usage"] else [])


@pytest.mark.parametrize(
    ("fields", "own", "param", "words"),
    [
        ({"max_pixels": 12_845_056}, {}, "max_pixels", ("12845056", str(OPERATORS))),
        ({"mm_processor_kwargs": {"max_pixels": 12_845_056}}, {}, "max_pixels", ("12845056",)),
        ({"min_pixels": 2_000_000}, {}, "min_pixels", ("2000000", str(OPERATORS))),
        ({"min_pixels": 6000, "max_pixels": 5000}, {}, "min_pixels", ("6000", "5000")),
        ({"max_pixels": 100}, {}, "max_pixels", ("100", "784")),
        ({"max_pixels": 1000}, {}, "max_pixels", ("1000", "3136")),
        ({}, {"max_pixels": 2_000_000}, "messages[0].content[0].image_url", ("2000000",)),
        ({}, {"max_pixels": "x"}, "messages[0].content[0].max_pixels", ("whole number",)),
        ({}, {"detail": "tiny"}, "messages[0].content[0].image_url.detail", ("auto", "low")),
        ({"mm_processor_kwargs": {"crop": 2}}, {}, "mm_processor_kwargs.crop", ("unknown",)),
    ],
)
def test_pixels_that_are_not_read_are_refused_with_the_numbers(
    client: httpx.Client,
    fields: dict[str, Any],
    own: dict[str, Any],
    param: str,
    words: tuple[str, ...],
) -> None:
    found, message = refused(chat(client, part(SQUARE_FILE, **own), **fields))
    assert found == param
    assert all(word in message for word in words), message


@pytest.mark.parametrize("size", [(10_000, 1), (1, 10_000), (6030, 30)])
def test_a_picture_too_thin_is_refused_by_its_name(
    client: httpx.Client, size: tuple[int, int]
) -> None:
    for own in ({}, {"max_pixels": 5000}):
        param, message = refused(chat(client, part(SQUARE_FILE), part(png(*size), **own)))
        assert param == "messages[0].content[1].image_url"
        assert f"{size[0]}x{size[1]}" in message


def test_pictures_that_do_not_fit_the_context_are_refused_with_the_numbers_and_the_remedy(
    client: httpx.Client,
) -> None:
    others = [part(png(1024, 1024, level)) for level in range(1, 4)]
    _, message = refused(chat(client, part(MEGAPIXEL_FILE), *others))
    for word in ("4107", "3 pictures", "4096", "max_pixels", "detail low"):
        assert word in message
    low = [each | {"image_url": each["image_url"] | {"detail": "low"}} for each in others]
    assert sizes(chat(client, part(MEGAPIXEL_FILE), *low)) == [MEGAPIXEL, LOW, LOW, LOW]


# -- V2 --------------------------------------------------------------------------------------------
def v2(client: httpx.Client, *files: bytes, **parameters: Any) -> httpx.Response:
    n = [max(1, len(files))]
    inputs = [{"name": "prompt", "datatype": "BYTES", "shape": n, "data": ["What?"] * n[0]}]
    if files:
        data = [base64.b64encode(file).decode() for file in files]
        inputs.append({"name": "image", "datatype": "BYTES", "shape": n, "data": data})
    body = {"inputs": inputs, "parameters": {"max_tokens": 1} | parameters}
    return client.post("/v2/models/qwen-vl/infer", json=body)


def columns(answer: httpx.Response) -> list[list[int]]:
    outputs = answer.raise_for_status().json()["outputs"]
    found = {output["name"]: output["data"] for output in outputs}
    return [found[f"image_{name}"] for name in ("width", "height", "tokens")]


def test_v2_says_the_size_of_each_rows_picture(client: httpx.Client) -> None:
    found = columns(v2(client, SQUARE_FILE, png(90, 60)))
    assert found == [[588, 84], [588, 56], [441, 6]]
    assert columns(v2(client, SQUARE_FILE, detail="low")) == [[504], [504], [324]]
    assert columns(v2(client, SQUARE_FILE, max_pixels=50_000)) == [[196], [196], [49]]
    assert columns(v2(client)) == [[0], [0], [0]]
    described = client.get("/v2/models/qwen-vl").json()["outputs"]
    assert {"name": "image_width", "datatype": "INT64", "shape": [-1]} in described


def test_v2_refuses_the_same_pixels(running: Running, client: httpx.Client) -> None:
    answer = v2(client, SQUARE_FILE, max_pixels=2_000_000)
    assert answer.status_code == 400
    assert "2000000 is above the 1103872" in answer.json()["error"]
    with grpc.insecure_channel(running.grpc_target) as channel:
        request = pb.ModelInferRequest(model_name="qwen-vl")
        request.parameters["max_pixels"].int64_param = 2_000_000
        request.inputs.add(
            name="prompt", datatype="BYTES", shape=[1]
        ).contents.bytes_contents.append(b"What?")
        with pytest.raises(grpc.RpcError) as error:
            pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "1103872" in error.value.details()


# -- the operator ----------------------------------------------------------------------------------
def preparer(**settings: int) -> ChatPreparer:
    chosen, limits = QwenVLSettings(**settings), ImageLimits()
    return ChatPreparer("test", Qwen25VLModel(CHECKPOINT), chosen, limits, lambda: 32768)


def test_the_former_default_is_a_setting() -> None:
    former = preparer(max_pixels=1_003_520)
    assert former.prepare_picture(Picture(MEGAPIXEL_FILE)).grid == (70, 70)
    assert former.pixels.of_detail("high") == 1_003_520


def test_an_operator_may_allow_more_than_is_read_by_default() -> None:
    ample = preparer(max_pixels=12_845_056, default_max_pixels=1_103_872)
    page, high = png(2480, 3508), ample.pixels.choose(None, ample.pixels.of_detail("high"))
    grids = [ample.prepare_picture(Picture(page, bounds=asked)).grid for asked in (None, high)]
    assert [rows * columns // 4 for rows, columns in grids] == [1364, 11125]
