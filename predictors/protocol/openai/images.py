"""`POST /v1/images/generations`: its route. The fields of a body are `openai_images_body`'s."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson

from predictors.errors import InvalidRequest
from predictors.protocol.call import Call
from predictors.protocol.http.exchange import Response, json_response
from predictors.protocol.openai.edge import Operation
from predictors.protocol.openai.images_body import ImagesBody, decode
from predictors.protocol.serves import ServesImages


async def _reply(model: ServesImages, body: Mapping[str, Any], call: Call) -> Response:
    try:
        # a hundred megabytes of base64 would hold the event loop up
        return await asyncio.to_thread(_encoded, await model.images(body, call))
    except InvalidRequest as error:
        if isinstance(body, ImagesBody) and error.param is not None:
            error.param = body.spelt.get(error.param, error.param)
        raise


def _encoded(answer: Mapping[str, Any]) -> Response:
    # base64 needs no escapes: the encoder copies it as it is
    data = [
        {**picture, "b64_json": orjson.Fragment(b'"%b"' % picture["b64_json"].encode())}
        for picture in answer["data"]
    ]
    return json_response({**answer, "data": data})


IMAGES = Operation(
    name="images",
    route="/images/generations",
    decode=decode,
    serves=lambda model: isinstance(model, ServesImages),
    reply=_reply,
)
