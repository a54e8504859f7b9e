"""The fields of an edit, as a form and as JSON: what is read, dropped and refused by name."""

from __future__ import annotations

import base64
import pickle
from typing import Any

import httpx
import orjson
import pytest

from predictors.errors import InvalidRequest, Overloaded
from predictors.protocol.call import Call
from predictors.protocol.openai.edits_body import (
    FIELDS,
    OWN_FIELDS,
    EditsBody,
    SentPicture,
    decode_edits_body,
    read_edits_body,
)
from predictors.protocol.openai.images_body import OWN_FIELDS as IMAGE_FIELDS
from tests.http.echo import PIXEL
from tests.protocol.openai.doubles import (
    EDITS,
    GOLDEN,
    Chatter,
    Painter,
    application,
    counted,
    post,
    same_as_golden,
)

FORM = GOLDEN / "edits_request.form"
URL = "data:image/png;base64," + base64.b64encode(PIXEL).decode()
GIVEN = {"model": "flux", "prompt": "a red circle"}


def form(data: dict[str, Any] | None = None, *files: tuple[str, bytes]) -> tuple[bytes, str]:
    """A body and its content type, as httpx writes them."""
    sent: Any = [(name, ("a.png", file, "image/png")) for name, file in files or [("image", PIXEL)]]
    request = httpx.Request("POST", "http://x", data=GIVEN | (data or {}), files=sent)
    return request.read(), request.headers["content-type"]


def read(raw: bytes, content_type: str = "application/json") -> EditsBody:
    return decode_edits_body(raw, content_type).accepted()


def in_json(**fields: Any) -> EditsBody:
    return read(orjson.dumps(GIVEN | fields))


def checked(*where: str, **fields: Any) -> EditsBody:
    pictures = tuple(SentPicture(PIXEL, each) for each in where or ("image",))
    return EditsBody("flux", "a red circle", images=pictures, **fields)


def test_form_and_json_make_the_same_body() -> None:
    fields = {
        "n": 2,
        "seed": 0,
        "strength": 0.5,
        "num_inference_steps": 28,
        "guidance_scale": 3.5,
        "negative_prompt": "blue",
        "tier": "turbo",
        "output_format": "webp",
        "output_compression": 90,
    }
    wanted = checked(width=1024, height=768, mask=SentPicture(PIXEL, "mask"), **fields)
    as_text = {name: str(value) for name, value in fields.items()} | {"size": "1024x768"}
    assert read(*form(as_text, ("image", PIXEL), ("mask", PIXEL))) == wanted
    assert in_json(image=URL, mask=URL, size="1024x768", **fields) == wanted


def test_pictures_come_in_every_spelling() -> None:
    assert in_json(image=[URL]) == checked("image[0]")
    assert in_json(image=[URL, URL]) == checked("image[0]", "image[1]")
    assert in_json(images=[{"image_url": URL}]) == checked("images[0].image_url")
    masked = in_json(image=URL, mask={"image_url": URL})
    assert masked.mask == SentPicture(PIXEL, "mask.image_url")
    assert read(*form({}, ("image[]", PIXEL))) == checked("image[0]")
    assert read(*form({}, ("image", PIXEL), ("image", PIXEL))) == checked("image[0]", "image[1]")
    assert read(*form({}, ("image", URL.encode()))) == checked()
    assert read(*form({}, ("image", PIXEL), ("mask", b""))) == checked()


def test_standard_fields_that_change_nothing_are_accepted_and_dropped() -> None:
    fields = {
        "user": "u",
        "size": "auto",
        "quality": "hd",
        "background": "opaque",
        "input_fidelity": "high",
        "moderation": "low",
        "response_format": "b64_json",
        "stream": "false",
        "partial_images": "0",
    }
    assert read(*form(fields)) == checked()


def test_an_empty_text_is_null_but_for_the_prompt() -> None:
    empty = dict.fromkeys(set(OWN_FIELDS) - {"model", "prompt", "image", "images"}, "")
    assert read(*form(empty | {"prompt": ""})).prompt == ""
    assert read(*form(empty)) == checked()


def test_null_means_absent_for_every_optional_field() -> None:
    nulls = dict.fromkeys(set(FIELDS) - {"model", "prompt", "image"})
    assert in_json(**nulls, image=URL) == checked()


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({}, "image", "image is required"),
        ({"image": []}, "image", "empty list"),
        ({"image": 5}, "image", "must be a data URL"),
        ({"image": {"image_url": URL}}, "image", "must be a data URL"),
        ({"image": [URL, None]}, "image[1]", "must be a data URL"),
        ({"image": [URL] * 17}, "image", "17 pictures; at most 16"),
        ({"image": "http://x/a.png"}, "image", "fetches none"),
        ({"image": "data:image/png;base64,!!"}, "image", "damaged"),
        ({"image": URL, "images": [{"image_url": URL}]}, "images", "send one of them"),
        ({"images": URL}, "images", "list of objects"),
        ({"images": [{"file_id": "f"}]}, "images[0].file_id", "keeps no files"),
        ({"images": [{}]}, "images[0].image_url", "is required"),
        ({"images": [{"image_url": URL, "detail": 1}]}, "images[0].detail", "unknown field"),
        ({"image": URL, "mask": [URL]}, "mask", "must be a data URL"),
        ({"image": URL, "strength": 1.5}, "strength", "from 0 to 1"),
        ({"image": URL, "strength": "0.5"}, "strength", "must be a number"),
        ({"image": URL, "input_fidelity": "max"}, "input_fidelity", "must be 'low' or 'high'"),
        ({"image": URL, "background": "transparent"}, "background", "opaque"),
        ({"image": URL, "markup": URL}, "markup", "a mask says"),
        ({"image": URL, "strenght": 1}, "strenght", "did you mean 'strength'"),
        ({"image": URL, "n": 0}, "n", "from 1 to 16"),
        ({"image": URL, "size": "64x64", "width": 32}, "width", "disagree"),
    ],
)
def test_a_wrong_field_is_refused_by_name(fields: dict[str, Any], param: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        in_json(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"n": "two"}, "n"), ({"strength": "1e999"}, "strength"), ({"promt": "x"}, "promt")],
)
def test_a_wrong_field_of_a_form_is_refused_by_name(fields: dict[str, str], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(*form(fields))
    assert caught.value.param == param


def test_a_refused_body_still_says_its_model() -> None:
    assert decode_edits_body(*form({"n": "0"})).model == "flux"


def test_edits_take_every_field_that_generations_take() -> None:
    assert set(IMAGE_FIELDS) < set(OWN_FIELDS)
    with pytest.raises(InvalidRequest, match="must be a JSON object"):
        read_edits_body([])


def test_a_body_survives_the_way_from_a_worker_process() -> None:
    decoded = decode_edits_body(*form({"n": "2"}))
    assert pickle.loads(pickle.dumps(decoded)) == decoded


# -- the route -------------------------------------------------------------------------------------
async def test_the_model_gets_the_body_of_a_form() -> None:
    painter = Painter()
    raw, content_type = form({"n": "2"})
    before = counted("flux", "edits", "ok")
    wire = await post(EDITS, raw, content_type=content_type).run(application(painter))
    assert wire.status == 200
    assert len(wire.json["data"]) == 2
    assert painter.bodies == [checked(n=2)]
    assert counted("flux", "edits", "ok") == before + 1


async def test_a_body_of_another_type_is_415() -> None:
    wire = await post(EDITS, b"model=flux", content_type="application/x-www-form-urlencoded").run(
        application(Painter())
    )
    assert wire.status == 415
    assert "application/json, multipart/form-data" in wire.error["message"]


async def test_a_malformed_form_is_400() -> None:
    raw, content_type = form()
    wire = await post(EDITS, raw[:-9], content_type=content_type).run(application(Painter()))
    assert wire.status == 400
    assert "closing boundary" in wire.error["message"]


async def test_a_model_that_draws_nothing_is_refused_with_those_that_edit() -> None:
    app = application(Painter(), Chatter())
    body = GIVEN | {"model": "qwen-vl", "image": URL}
    wire = await post(EDITS, body).run(app)
    assert wire.status == 400
    assert wire.error["param"] == "model"
    assert wire.error["message"] == (
        "POST /v1/images/edits does not serve model 'qwen-vl'; POST /v1/chat/completions does, "
        "and POST /v1/images/edits serves flux"
    )


class Full(Painter):
    """A model whose queue is full."""

    def check_room(self, call: Call, rows: int = 1) -> None:
        raise Overloaded("the queue is full", retry_after_s=1.0)


async def test_a_full_queue_refuses_an_edit_before_its_body_is_read() -> None:
    wire = await post(EDITS, b"never read", content_type="text/plain").run(application(Full()))
    assert wire.status == 503
    assert wire.error["message"] == "the queue is full"


async def test_an_edit_and_its_refusals_match_the_golden_files() -> None:
    app = application(Painter(), Chatter())
    whole = FORM.read_bytes()
    named = {"x_request_id": "r1", "content_type": "multipart/form-data; boundary=frontier"}
    same_as_golden("edits.http", await post(EDITS, whole, **named).run(app))
    for name, old, new in (
        ("edits_cut.http", b"--frontier--", b""),
        ("edits_bad_field.http", b'"strength"', b'"strenght"'),
        ("edits_wrong_model.http", b"\r\nflux\r\n", b"\r\nqwen-vl\r\n"),
    ):
        assert old in whole
        same_as_golden(name, await post(EDITS, whole.replace(old, new), **named).run(app))
