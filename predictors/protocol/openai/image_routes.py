"""The operations that draw: image generations and edits, whole or as a stream."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

from predictors.protocol.call import Call
from predictors.protocol.http.bodies import JSON_MEDIA
from predictors.protocol.http.multipart import FORM_MEDIA
from predictors.protocol.http.responses import EventStream, Response, json_response
from predictors.protocol.openai.edits_body import EditsBody, decode_edits_body
from predictors.protocol.openai.events import STREAM_HEADERS
from predictors.protocol.openai.image_events import encoded_file, error_event
from predictors.protocol.openai.images_body import URL, ImagesBody, decode_images_body
from predictors.protocol.openai.operations import Operation, openai_body
from predictors.protocol.openai.picture_files import PictureFiles
from predictors.protocol.openai.spelling import respelling, respelt_events
from predictors.protocol.serves import ServesEdits, ServesImages


async def reply_images(
    files: PictureFiles, model: ServesImages | ServesEdits, body: ImagesBody, call: Call
) -> Response | EventStream:
    """Pictures as base64, or held in `files` for their addresses; or one as events."""
    if body.stream:
        events = respelt_events(_draw_stream(model, body, call), body.spelt)
        encode_error = lambda fault: error_event(openai_body(fault))  # noqa: E731
        return EventStream(events, encode_error=encode_error, headers=STREAM_HEADERS)
    is_url = body.response_format == URL
    if is_url:
        files.check_offered()
    with respelling(body.spelt):
        answer = await _draw(model, body, call)
    # a hundred megabytes of base64 would block the event loop
    if not is_url:
        return await asyncio.to_thread(_images_reply, answer)
    response = await asyncio.to_thread(_addresses_reply, files, answer)
    asyncio.get_running_loop().call_later(files.lifetime_s + 1, files.drop_expired)
    return response


async def _draw(
    model: ServesImages | ServesEdits, body: ImagesBody | EditsBody, call: Call
) -> dict[str, Any]:
    if isinstance(body, EditsBody):
        assert isinstance(model, ServesEdits)
        return await model.edits(body, call)
    assert isinstance(model, ServesImages)
    return await model.images(body, call)


def _draw_stream(
    model: ServesImages | ServesEdits, body: ImagesBody | EditsBody, call: Call
) -> AsyncIterator[bytes]:
    if isinstance(body, EditsBody):
        assert isinstance(model, ServesEdits)
        return model.edits_stream(body, call)
    assert isinstance(model, ServesImages)
    return model.images_stream(body, call)


def _addresses_reply(files: PictureFiles, answer: Mapping[str, Any]) -> Response:
    pictures = [base64.b64decode(picture["b64_json"]) for picture in answer["data"]]
    addresses = files.put(pictures, answer["output_format"], answer.get("provenance", "none"))
    expires_at = int(time.time() + files.lifetime_s)
    data = [
        {"url": url, **picture, "expires_at": expires_at}
        for url, picture in zip(addresses, answer["data"], strict=True)
    ]
    for picture in data:
        del picture["b64_json"]
    return json_response({**answer, "data": data})


def _images_reply(answer: Mapping[str, Any]) -> Response:
    data = [{**picture, **encoded_file(picture["b64_json"])} for picture in answer["data"]]
    return json_response({**answer, "data": data})


def images_operation(files: PictureFiles) -> Operation:
    return Operation(
        name="images",
        route="/images/generations",
        decode=decode_images_body,
        serves=lambda model: isinstance(model, ServesImages),
        reply=partial(reply_images, files),
    )


def edits_operation(files: PictureFiles) -> Operation:
    return Operation(
        name="edits",
        route="/images/edits",
        decode=decode_edits_body,
        serves=lambda model: isinstance(model, ServesEdits),
        reply=partial(reply_images, files),
        media=JSON_MEDIA | {FORM_MEDIA},
        headers=("content-type",),
    )
