"""Streams of pictures: what may be asked for, the events to the byte, and failures within them."""

from __future__ import annotations

from typing import Any, get_args

import orjson
import pytest
from openai.types import ImageEditStreamEvent, ImageGenStreamEvent

from predictors.errors import InvalidRequest, StepFailed
from predictors.protocol.openai import image_events
from predictors.protocol.openai.image_events import EDIT, GENERATION, ImageEvents, named_event
from predictors.protocol.openai.images_body import read_images_body
from tests.protocol.openai.doubles import (
    CIRCLE,
    IMAGES,
    Painter,
    application,
    counted,
    post,
    same_as_golden,
)

pytestmark = pytest.mark.asyncio

STREAMED = CIRCLE | {"stream": True}


def parsed(raw: bytes) -> list[tuple[str, Any]]:
    """The names and data of events, which must have nothing else."""
    found = []
    for block in raw.decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        assert name.startswith("event: ")
        assert data.startswith("data: ")
        found.append((name.removeprefix("event: "), orjson.loads(data.removeprefix("data: "))))
    return found


async def test_a_stream_of_pictures_on_the_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_events.time, "time", lambda: 1_790_000_000.5)
    body = STREAMED | {"partial_images": 2, "progress": True}
    wire = await post(IMAGES, body, x_request_id="r1").run(application(Painter()))
    same_as_golden("images_stream.http", wire)


async def test_a_failure_after_previews_is_the_last_event() -> None:
    painter = Painter()
    painter.late_error = StepFailed("the picture's values are not finite")
    before = counted("flux", "images", "poisoned")
    wire = await post(IMAGES, STREAMED | {"partial_images": 1}).run(application(painter))
    assert wire.status == 200
    *_, (name, last) = parsed(wire.body)
    assert (name, last["type"], last["error"]["code"]) == ("error", "error", "job_failed")
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert counted("flux", "images", "poisoned") == before + 1


async def test_a_refusal_before_the_first_event_has_its_status_and_the_callers_field() -> None:
    painter = Painter()
    painter.error = InvalidRequest("width must be a multiple of 16", param="width")
    wire = await post(IMAGES, STREAMED | {"size": "63x64"}).run(application(painter))
    assert (wire.status, wire.error["param"]) == (400, "size")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"partial_images": 1}, "partial_images"),
        ({"stream": False, "partial_images": 3}, "partial_images"),
        ({"progress": True}, "progress"),
        ({"stream": True, "partial_images": 4}, "partial_images"),
        ({"stream": True, "partial_images": -1}, "partial_images"),
        ({"stream": True, "partial_images": 1.5}, "partial_images"),
        ({"stream": True, "partial_images": True}, "partial_images"),
        ({"stream": True, "partial_images": "2"}, "partial_images"),
        ({"stream": 1}, "stream"),
        ({"stream": "true"}, "stream"),
        ({"stream": True, "progress": "yes"}, "progress"),
        ({"stream": True, "n": 2}, "n"),
        ({"stream": True, "response_format": "url"}, "response_format"),
    ],
    ids=str,
)
async def test_a_body_that_can_not_be_streamed_is_refused_by_field(
    fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_images_body(CIRCLE | fields)
    assert refused.value.param == param


async def test_fields_that_ask_for_nothing_are_taken() -> None:
    body = read_images_body(
        CIRCLE | {"stream": False, "partial_images": 0, "progress": False, "n": 2}
    )
    assert (body.stream, body.partial_images, body.progress) == (False, 0, False)
    body = read_images_body(STREAMED | {"partial_images": 2.0, "progress": None, "n": 1})
    assert (body.stream, body.partial_images, body.progress) == (True, 2, False)


@pytest.mark.parametrize(
    ("kind", "union"), [(GENERATION, ImageGenStreamEvent), (EDIT, ImageEditStreamEvent)]
)
async def test_the_events_have_the_fields_of_openais_types(kind: str, union: Any) -> None:
    events = ImageEvents(kind, "64x64", "webp")
    usage = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3} | {
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 1}
    }
    answer = {"created": 1, "data": [{"b64_json": "AAAA", "seed": 3}], "usage": usage}
    raw = events.partial(0, b"file") + events.completed(answer | {"output_format": "webp"})
    known_types = get_args(get_args(union)[0])
    types = {get_args(each.model_fields["type"].annotation)[0]: each for each in known_types}
    for name, data in parsed(raw):
        known = types.pop(name)
        known.model_validate(data, strict=True)  # every field there, of its type
    assert not types


async def test_an_event_is_one_line_of_data_whatever_it_holds() -> None:
    raw = named_event("x", {"text": "a\n\r\u2028b", "type": "x"})
    assert raw.count(b"\n") == 3
    assert parsed(raw) == [("x", {"text": "a\n\r\u2028b", "type": "x"})]
