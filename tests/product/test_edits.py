"""Edits of the embedded checkpoint over HTTP: sizes, refusals, what is logged and counted."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.http.log_lines import logged
from tests.product.conftest import Sample

EDITS = "/v1/images/edits"
GIVEN = {"model": "flux", "prompt": "a small red circle on a white background"}


def gradient(width: int = 128, height: int = 128, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    shape = np.linspace(0, 255, width * height).reshape(height, width).astype(np.uint8)
    Image.fromarray(np.stack([shape, shape.T.reshape(height, width), 255 - shape], -1)).save(
        file, kind, **options
    )
    return file.getvalue()


def scene() -> bytes:
    """Squares on white, as the checkpoint was trained on."""
    picture, file = Image.new("RGB", (128, 128), "white"), BytesIO()
    picture.paste((220, 40, 40), (16, 16, 56, 56))
    picture.paste((40, 80, 220), (88, 88, 120, 120))
    picture.save(file, "PNG")
    return file.getvalue()


def drawn(answer: httpx.Response) -> Image.Image:
    assert answer.status_code == 200, answer.text
    file = base64.b64decode(answer.json()["data"][0]["b64_json"])
    return Image.open(BytesIO(file)).convert("RGB")


def edit(http: httpx.Client, picture: bytes, mask: bytes | None = None, **fields: Any) -> Any:
    files = {"image": picture} | ({} if mask is None else {"mask": mask})
    return http.post(EDITS, data=GIVEN | {"num_inference_steps": "2"} | fields, files=files)


def error_of(answer: httpx.Response, status: int = 400) -> tuple[str, str]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    return error["param"], error["message"]


def test_strength_0_gives_the_picture_back_through_the_autoencoder(http: httpx.Client) -> None:
    found = np.asarray(drawn(edit(http, scene(), strength="0"))).astype(int)
    assert np.abs(found - np.asarray(Image.open(BytesIO(scene())))).mean() < 3


def test_strength_1_draws_what_generations_draw(http: httpx.Client) -> None:
    body = GIVEN | {"num_inference_steps": 2, "seed": 7, "size": "128x128"}
    generated = drawn(http.post("/v1/images/generations", json=body))
    edited = drawn(edit(http, gradient(), strength="1", seed="7"))
    assert np.array_equal(np.asarray(generated), np.asarray(edited))


def test_outside_of_the_mask_the_picture_stays(http: httpx.Client) -> None:
    mask, file = Image.new("L", (128, 128)), BytesIO()
    mask.paste(255, (80, 80, 128, 128))
    mask.save(file, "PNG")
    found = np.asarray(drawn(edit(http, scene(), file.getvalue(), strength="1"))).astype(int)
    away = np.abs(found - np.asarray(Image.open(BytesIO(scene())))).mean(axis=2)
    assert away[:64].mean() < 3
    assert away[:, :64].mean() < 3
    assert away[80:, 80:].mean() > 3


@pytest.mark.parametrize(
    ("picture", "fields", "size"),
    [
        (gradient(100, 70), {}, (96, 64)),
        (gradient(100, 70), {"size": "auto"}, (96, 64)),
        (gradient(100, 70), {"size": "128x64"}, (128, 64)),
        (gradient(900, 600, "JPEG"), {}, (256, 160)),
        (gradient(8, 8), {}, (64, 64)),
    ],
)
def test_the_size_is_the_pictures_unless_one_is_named(
    http: httpx.Client, picture: bytes, fields: dict[str, str], size: tuple[int, int]
) -> None:
    answer = edit(http, picture, **fields)
    assert drawn(answer).size == size
    assert answer.json()["size"] == f"{size[0]}x{size[1]}"


def test_n_pictures_differ_by_their_seeds(http: httpx.Client) -> None:
    answer = edit(http, gradient(), n="2", seed="3").json()
    assert [each["seed"] for each in answer["data"]] == [3, 4]
    assert answer["data"][0]["b64_json"] != answer["data"][1]["b64_json"]


def test_refusals_name_the_field_and_the_numbers(http: httpx.Client) -> None:
    picture = gradient()
    assert error_of(edit(http, picture, gradient(64, 128))) == (
        "mask",
        "mask is 64x128 pixels and image 128x128; both must have one size",
    )
    param, message = error_of(edit(http, picture, strength="1.5"))
    assert (param, message) == ("strength", "strength must be a number from 0 to 1, not 1.5")
    assert error_of(edit(http, b"hello"))[0] == "image"
    assert error_of(edit(http, picture[:200]))[0] == "image"
    assert error_of(edit(http, picture, size="100x64"))[0] == "size"
    several = [("image[]", picture), ("image[]", picture)]
    answer = http.post(EDITS, data=GIVEN, files=several)
    assert error_of(answer) == ("image", "image holds 2 pictures; flux takes one")
    param, message = error_of(
        http.post(EDITS, data=GIVEN | {"model": "qwen-vl"}, files={"image": picture})
    )
    assert param == "model"
    assert "/images/edits serves flux" in message
    body = GIVEN | {"image": "data:image/png;base64,AAAA"}
    param, message = error_of(http.post("/v1/images/generations", json=body))
    assert (param, "POST /v1/images/edits" in message) == ("image", True)


def test_an_edit_is_one_line_of_the_log_and_one_count(http: httpx.Client, sample: Sample) -> None:
    labels = {"model": "flux", "protocol": "openai", "operation": "edits", "reason": "ok"}
    before = sample("predictors_requests_total", **labels)
    with logged() as lines:
        drawn(edit(http, gradient(100, 70)))
        (line,) = lines.wait(1)
    assert (line["operation"], line["source_size"], line["masked"]) == ("edits", "100x70", False)
    assert (line["width"], line["height"]) == (96, 64)
    assert sample("predictors_requests_total", **labels) == before + 1
