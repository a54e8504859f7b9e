"""All OpenAI routes: chat completions, image generations, and the models KServe V1 lists too.

`endpoint` makes the ASGI endpoint of one POST route from an `Operation`. A failure is `{"error":
{"message", "type", "param", "code"}}`: the response's body, or the last event of a stream that has
begun.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import orjson
from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from predictors.errors import Forbidden, InvalidRequest, NotFound, ServingError
from predictors.protocol.call import Call
from predictors.protocol.faults import Fault, fault_of
from predictors.protocol.http.app import PlainEndpoint
from predictors.protocol.http.bodies import JSON_MEDIA
from predictors.protocol.http.exchange import (
    CALL_KEY,
    Endpoint,
    EventStream,
    Exchange,
    Response,
    json_response,
)
from predictors.protocol.http.multipart import FORM_MEDIA
from predictors.protocol.openai.chat_body import ChatBody, decode_chat_body
from predictors.protocol.openai.edits_body import EditsBody, decode_edits_body
from predictors.protocol.openai.fields import DecodedBody
from predictors.protocol.openai.image_events import error_event, respell, respelt_events
from predictors.protocol.openai.images_body import URL, ImagesBody, decode_images_body
from predictors.protocol.openai.picture_files import ROUTE as FILES_ROUTE
from predictors.protocol.openai.picture_files import PictureFiles, file_response
from predictors.protocol.registry import Registry
from predictors.protocol.serves import Served, ServesChat, ServesEdits, ServesImages

PREFIXES = ("/openai/v1", "/v1")
OWNER = "vision-predictors"
STREAM_HEADERS = (
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
    ("x-accel-buffering", "no"),  # nginx would hold the events back
)
_NO_TEXT = b'"content":""'


@dataclass(frozen=True, slots=True)
class Operation:
    """One POST route: its path below `/v1`, and how its body is read and answered."""

    name: str
    """Metric label."""
    route: str
    decode: Callable[..., DecodedBody[Any]]
    """From the body's bytes and the values of `headers`; called in a worker process for a large
    body."""
    serves: Callable[[Served], bool]
    """True for a model that serves this route."""
    reply: Callable[[Any, Any, Call], Awaitable[Response | EventStream]]
    """Answers a call with such a model and a checked body."""
    media: Collection[str] = JSON_MEDIA
    """Content types of a body."""
    headers: tuple[str, ...] = ()
    """Headers that `decode` reads."""


def openai_routes(registry: Registry) -> list[BaseRoute]:
    listing = Listing(registry)
    files = PictureFiles(registry.settings.server)
    operations = (CHAT, images_operation(files), edits_operation(files))
    endpoints = [(each.route, endpoint(registry, each, operations)) for each in operations]

    async def file(request: Request) -> Response:
        return file_response(files.get(request.path_params["file"]))

    routes: list[BaseRoute] = []
    for prefix in PREFIXES:
        routes += [Route(prefix + route, answer, methods=["POST"]) for route, answer in endpoints]
        routes += [
            Route(f"{prefix}{FILES_ROUTE}/{{file}}", PlainEndpoint(file), methods=["GET"]),
            Route(f"{prefix}/models", PlainEndpoint(listing.all), methods=["GET"]),
            Route(f"{prefix}/models/{{name:model}}", PlainEndpoint(listing.one), methods=["GET"]),
        ]
    return routes


def endpoint(registry: Registry, operation: Operation, every: tuple[Operation, ...]) -> Endpoint:
    """Of `every` operation, those that serve it are named to a caller whose model is of another
    kind."""

    async def handle(exchange: Exchange) -> Response | EventStream:
        check_only_model(registry, operation, exchange)
        headers = [exchange.call.get(name, "") for name in operation.headers]
        decoded = await exchange.decode_body(operation.decode, *headers, media=operation.media)
        if decoded.model is not None:
            exchange.record.model = registry.label(decoded.model)  # for a refused body too
        if decoded.refusal is not None and decoded.refusal.param == "model":
            names = registry.names_for(exchange.call)
            raise _with_models(decoded.refusal, names, operation)
        body = decoded.accepted()
        model = exchange.find(body.model)
        if not operation.serves(model):
            names = registry.names_for(exchange.call)
            raise _wrong_kind(model, operation, every, names)
        exchange.admit(body.model)
        return await operation.reply(model, body, exchange.call)

    return Endpoint(
        handle, registry, protocol="openai", operation=operation.name, body_of=openai_body
    )


def check_only_model(registry: Registry, operation: Operation, exchange: Exchange) -> None:
    """Refuse a request before its body is read where a single model could answer it and its queue
    is full. With several models the body has to say which one is meant."""
    able = [each for each in registry.models_for(exchange.call) if operation.serves(each)]
    if len(able) == 1:
        try:
            registry.check_room(able[0], exchange.call)
        except ServingError:
            exchange.record.model = able[0].name
            raise


def _with_models(
    refusal: InvalidRequest, names: Mapping[str, Served], operation: Operation
) -> InvalidRequest:
    listed = _served_by(operation, names) or "none"
    return InvalidRequest(f"{refusal.message}; served here: {listed}", param=refusal.param)


def _served_by(operation: Operation, names: Mapping[str, Served]) -> str:
    return ", ".join(name for name, model in names.items() if operation.serves(model))


def openai_body(fault: Fault) -> bytes:
    """The error body. A `NotFound` of these routes is always about a model."""
    if fault.code == "not_found":
        fault = replace(fault, param="model", code="model_not_found")
    elif fault.code == "context_length_exceeded":
        # LangChain looks for the code in the text that OpenAI's client makes of the message
        fault = replace(fault, message=f"{fault.message} ({fault.code})")
    return fault.openai_body()


def _wrong_kind(
    model: Served,
    operation: Operation,
    every: tuple[Operation, ...],
    names: Mapping[str, Served],
) -> InvalidRequest:
    message = f"POST /v1{operation.route} does not serve model {model.name!r}"
    there = [other.route for other in every if other.serves(model)]
    if there:
        message += f"; POST /v1{there[0]} does"
    if able := _served_by(operation, names):
        message += f", and {operation.route} serves {able}"
    return InvalidRequest(message, param="model")


# -- events ----------------------------------------------------------------------------------------
def event(chunk: Mapping[str, Any]) -> bytes:
    return framed(orjson.dumps(chunk))


def framed(payload: bytes) -> bytes:
    """`payload`, which must not have a line break, as one event."""
    return b"data: %b\n\n" % payload


DONE = framed(b"[DONE]")
"""The event that ends a complete answer."""


class TextEvents:
    """Events that differ from `chunk` in their text only; the same bytes as `event` makes."""

    def __init__(self, chunk: Mapping[str, Any]) -> None:
        """`chunk` must have exactly one `content`, the empty text."""
        # not found inside a string, where quotes have a backslash before them
        before, after = framed(orjson.dumps(chunk)).split(_NO_TEXT)
        self._before, self._after = before + _NO_TEXT[:-2], after

    def event(self, text: str) -> bytes:
        return b"%b%b%b" % (self._before, orjson.dumps(text), self._after)


# -- chat ------------------------------------------------------------------------------------------
async def _reply_chat(model: ServesChat, body: ChatBody, call: Call) -> Response | EventStream:
    if body.stream:
        events = model.chat_stream(body, call)
        return EventStream(
            events, encode_error=_encode_error, last_event=DONE, headers=STREAM_HEADERS
        )
    return json_response(await model.chat(body, call))


def _encode_error(fault: Fault) -> bytes:
    # no `[DONE]` follows: the answer is not complete
    return framed(openai_body(fault))


CHAT = Operation(
    name="chat",
    route="/chat/completions",
    decode=decode_chat_body,
    serves=lambda model: isinstance(model, ServesChat),
    reply=_reply_chat,
)


# -- images ----------------------------------------------------------------------------------------
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
    try:
        answer = await _draw(model, body, call)
    except InvalidRequest as error:
        respell(error, body.spelt)
        raise
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
    # base64 needs no escapes: the encoder copies it as it is
    data = [
        {**picture, "b64_json": orjson.Fragment(b'"%b"' % picture["b64_json"].encode())}
        for picture in answer["data"]
    ]
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


# -- models ----------------------------------------------------------------------------------------
class Listing:
    """`GET /v1/models` and `/v1/models/{name}`, each answer with the fields of OpenAI and of KServe
    V1, which share these addresses. Event loop."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._created = int(time.time())  # Unix seconds of the server's start

    async def all(self, request: Request) -> Response:
        """`data` for OpenAI's clients, `models` for KServe V1's; models that are loading and
        aliases are listed too."""
        names = self._registry.names_for(request.scope[CALL_KEY])
        data = [self._card(name, model) for name, model in names.items()]
        return json_response({"object": "list", "data": data, "models": list(names)})

    async def one(self, request: Request) -> Response:
        """OpenAI's model object with V1's `name` and `ready`; 503 until ready, 404 if unknown."""
        name = request.path_params["name"]
        try:
            model = self._registry.find(name, call=request.scope[CALL_KEY])
        except (NotFound, Forbidden) as error:
            fault = fault_of(error)
            return Response(openai_body(fault), fault.status)
        ready = await self._registry.is_ready(model.name)
        card = self._card(name, model) | {"name": name, "ready": ready}
        return json_response(card, 200 if ready else 503)

    def _card(self, name: str, model: Served) -> dict[str, Any]:
        card = {"id": name, "object": "model", "created": self._created, "owned_by": OWNER}
        return card | {"parent": model.name} if self._registry.adapter_of(name) else card
