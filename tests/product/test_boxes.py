"""Boxes in the caller's pixels, by every protocol. A choice of one text makes the model say it."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from typing import Any

import grpc
import httpx
import pytest
from PIL import Image

from predictors.protocol.kserve_sdk import pb, pb_grpc
from tests.http.echo import PATIENCE_S, Running

SAID = '[{"bbox_2d": [14, 28, 70, 140], "label": "red cross"}, {"point_2d": [7, 7]}]'
QUESTION = "Locate every shape."
MAX_PIXELS = 20_000  # squares are read at 140x140
TURNED = 6  # EXIF: the file's rows are the columns of the upright picture
PARAMETERS = {"temperature": 0.0, "max_tokens": 120, "max_pixels": MAX_PIXELS}
Boxes = list[dict[str, Any]]


def file_of(width: int, height: int, **options: Any) -> bytes:
    file = BytesIO()
    Image.new("RGB", (width, height), (90, 120, 150)).save(file, "PNG", **options)
    return file.getvalue()


def boxes_at(*scales: float) -> Boxes:
    """The model's box, scaled across and down."""
    across, down = scales
    box = [round(14 * across), round(28 * down), round(70 * across), round(140 * down)]
    point = [round(7 * across), round(7 * down)] * 2
    return [{"picture": 0, "label": "red cross", "box": box},
            {"picture": 0, "label": "", "box": point}]  # fmt: skip


def v2_inputs(files: list[bytes]) -> list[dict[str, Any]]:
    data = [base64.b64encode(file).decode() for file in files]
    columns = {"prompt": [QUESTION] * len(files), "image": data}
    return [{"name": name, "datatype": "BYTES", "shape": [len(files)], "data": column}
            for name, column in columns.items()]  # fmt: skip


def v2(http: httpx.Client, files: list[bytes], **fields: Any) -> httpx.Response:
    body = {"inputs": v2_inputs(files), "parameters": {**PARAMETERS, "choice": json.dumps([SAID])}}
    body["parameters"] |= fields.pop("parameters", {})
    return http.post("/v2/models/qwen-vl/infer", json=body | fields)


def chat(http: httpx.Client, files: list[bytes], said: str = SAID, **fields: Any) -> httpx.Response:
    urls = [f"data:image/png;base64,{base64.b64encode(file).decode()}" for file in files]
    content: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content.append({"type": "text", "text": QUESTION})
    body = {"model": "qwen-vl", "messages": [{"role": "user", "content": content}],
            "guided_choice": [said], **PARAMETERS, **fields}  # fmt: skip
    return http.post("/v1/chat/completions", json=body).raise_for_status()


def message(*asked: Any, **fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = chat(*asked, **fields).json()["choices"][0]["message"]
    return found


@pytest.mark.parametrize("side", [128, 512, 1024])
def test_boxes_are_in_the_callers_pixels_and_the_text_is_the_models(
    http: httpx.Client, side: int
) -> None:
    """Two of the three sizes are shrunk on the way in."""
    file = file_of(side, side)
    found = message(http, [file], coordinates="original")
    assert found["content"] == SAID
    assert found["boxes"] == boxes_at(side / 140, side / 140)
    thousandths = message(http, [file], coordinates="normalized_1000")
    assert thousandths["boxes"] == boxes_at(1000 / 140, 1000 / 140)


def test_without_coordinates_an_answer_has_no_boxes(http: httpx.Client) -> None:
    file = file_of(128, 128)
    plain = message(http, [file])
    assert "boxes" not in plain
    assert message(http, [file], coordinates="model") == plain
    assert message(http, [file], coordinates="original") == plain | {
        "boxes": boxes_at(128 / 140, 128 / 140)
    }
    names = [output["name"] for output in v2(http, [file]).json()["outputs"]]
    assert "boxes" not in names


def test_a_stream_has_the_boxes_in_its_last_chunk(http: httpx.Client) -> None:
    reply = chat(http, [file_of(512, 512)], coordinates="original", stream=True, n=2)
    lines = [line for line in reply.text.splitlines() if line.startswith("data: {")]
    choices = [json.loads(line[6:])["choices"][0] for line in lines]
    ends = [choice for choice in choices if choice["finish_reason"]]
    expected = {"boxes": boxes_at(512 / 140, 512 / 140)}
    assert [choice["delta"] for choice in ends] == [expected, expected]
    assert not any("boxes" in c["delta"] for c in choices if not c["finish_reason"])


def test_each_row_of_v2_has_its_list_over_rest_and_grpc(
    product: Running, http: httpx.Client
) -> None:
    files = [file_of(128, 128), file_of(280, 280)]
    asked = {"coordinates": "original"}
    reply = v2(http, files, parameters=asked).raise_for_status().json()
    outputs = {each["name"]: each["data"] for each in reply["outputs"]}
    expected = [boxes_at(128 / 140, 128 / 140), boxes_at(2, 2)]
    assert list(map(json.loads, outputs["boxes"])) == expected
    request = pb.ModelInferRequest(model_name="qwen-vl")
    for name, column in (("prompt", [QUESTION.encode()] * 2), ("image", files)):
        tensor = request.inputs.add(name=name, datatype="BYTES", shape=[2])
        tensor.contents.bytes_contents.extend(column)
    request.outputs.add(name="boxes")
    request.parameters["max_tokens"].int64_param = 120
    request.parameters["max_pixels"].int64_param = MAX_PIXELS
    request.parameters["choice"].string_param = json.dumps([SAID])
    request.parameters["coordinates"].string_param = "original"
    with grpc.insecure_channel(product.grpc_target) as channel:
        answer = pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=PATIENCE_S)
    (raw,) = answer.raw_output_contents
    rows = []
    while raw:
        size = int.from_bytes(raw[:4], "little")
        rows.append(json.loads(raw[4 : 4 + size]))
        raw = raw[4 + size :]
    assert rows == expected


def test_boxes_of_a_turned_photo_lie_in_the_upright_picture(http: httpx.Client) -> None:
    exif = Image.Exif()
    exif[0x0112] = TURNED
    file = file_of(400, 200, exif=exif)  # upright it is 200 wide
    reply = chat(http, [file], coordinates="original").json()
    (read,) = reply["usage"]["prompt_images"]
    assert read["width"] < read["height"]
    across, down = 200 / read["width"], 400 / read["height"]
    assert reply["choices"][0]["message"]["boxes"][0] == boxes_at(across, down)[0]


def test_of_two_pictures_the_named_one_has_the_box(http: httpx.Client) -> None:
    said = '{"bbox_2d": [14, 28, 70, 140]} Picture 2: {"bbox_2d": [14, 28, 70, 140]}'
    files = [file_of(128, 128), file_of(1024, 1024)]
    found = message(http, files, said, coordinates="original")["boxes"]
    assert found == [boxes_at(1024 / 140, 1024 / 140)[0] | {"picture": 1, "label": ""}]


def test_an_answer_that_names_no_box_has_an_empty_list(http: httpx.Client) -> None:
    for files in ([], [file_of(128, 128)]):
        found = message(http, files, "I see [1, 2, 3", coordinates="original")
        assert found == {"role": "assistant", "content": "I see [1, 2, 3", "refusal": None,
                         "boxes": []}  # fmt: skip


def test_unknown_coordinates_and_unasked_boxes_are_refused(http: httpx.Client) -> None:
    asked = {"model": "qwen-vl", "messages": [{"role": "user", "content": "Hello"}]}
    reply = http.post("/v1/chat/completions", json=asked | {"coordinates": "inches"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "coordinates")
    file = file_of(128, 128)
    reply = v2(http, [file], parameters={"coordinates": "inches"})
    assert reply.status_code == 400
    assert "original" in reply.text
    reply = v2(http, [file], outputs=[{"name": "boxes"}])
    assert reply.status_code == 400
    assert "coordinates" in reply.text


def test_metadata_states_the_models_own_coordinates(http: httpx.Client) -> None:
    found = http.get("/v2/models/qwen-vl").raise_for_status().json()
    assert found["limits"]["coordinates"] == "pixels"
    assert found["parameters"]["coordinates"]["enum"] == ["model", "original", "normalized_1000"]
    assert "boxes" in [output["name"] for output in found["outputs"]]
