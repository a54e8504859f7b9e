"""Endpoints of the POST routes below `/v1`: each reads a body, finds its model and answers.

OpenAI's failures are `{"error": {"message", "type", "param", "code"}}`: the response's body, or the
last event of a stream that has begun.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.routing import Route

from predictors.errors import InvalidRequest, ServingError
from predictors.protocol.call import Call
from predictors.protocol.faults import Fault
from predictors.protocol.http.bodies import JSON_MEDIA
from predictors.protocol.http.exchange import Endpoint, Exchange
from predictors.protocol.http.responses import EventStream, Response
from predictors.protocol.openai.fields import DecodedBody
from predictors.protocol.registry import Registry
from predictors.protocol.serves import Served


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
    needs_model: bool = True
    """False: a body without a model is for the only one that serves this route."""


def post_routes(
    registry: Registry,
    operations: Sequence[Operation],
    prefixes: Sequence[str],
    *,
    protocol: str = "openai",
    body_of: Callable[[Fault], bytes] | None = None,
) -> list[Route]:
    """The routes of operations that belong together, below each of `prefixes`. `protocol` is a
    metric label; `body_of` makes the body of a failure, by default OpenAI's."""
    made = body_of or openai_body
    endpoints = [
        (each.route, _endpoint(registry, each, operations, protocol, made)) for each in operations
    ]
    return [
        Route(prefix + route, answer, methods=["POST"])
        for prefix in prefixes
        for route, answer in endpoints
    ]


def _endpoint(
    registry: Registry,
    operation: Operation,
    every: Sequence[Operation],
    protocol: str,
    body_of: Callable[[Fault], bytes],
) -> Endpoint:
    """The endpoint of `operation`. A caller whose model is of another kind is told the operations
    of `every` that serve it."""

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
        name = body.model
        if not name and not operation.needs_model:
            name = _only_name(registry, operation, exchange.call)
        model = exchange.find(name)
        if not operation.serves(model):
            names = registry.names_for(exchange.call)
            raise _wrong_kind(model, operation, every, names)
        exchange.admit(model)
        return await operation.reply(model, body, exchange.call)

    name = operation.name
    return Endpoint(handle, registry, protocol=protocol, operation=name, body_of=body_of)


def _only_name(registry: Registry, operation: Operation, call: Call) -> str:
    able = [each for each in registry.models_for(call) if operation.serves(each)]
    if len(able) != 1:
        refusal = InvalidRequest("model is required", param="model")
        raise _with_models(refusal, registry.names_for(call), operation)
    return able[0].name


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
    every: Sequence[Operation],
    names: Mapping[str, Served],
) -> InvalidRequest:
    message = f"POST /v1{operation.route} does not serve model {model.name!r}"
    there = [other.route for other in every if other.serves(model)]
    if there:
        message += f"; POST /v1{there[0]} does"
    if able := _served_by(operation, names):
        message += f", and POST /v1{operation.route} serves {able}"
    return InvalidRequest(message, param="model")
