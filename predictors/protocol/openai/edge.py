"""What the OpenAI routes share: from the body to the right kind of model, and failures in OpenAI's
words.

`endpoint` makes the ASGI endpoint of one POST route from an `Operation`; reading, counting,
deadlines and leaving callers are `rest`'s. A failure is `{"error": {"message", "type", "param",
"code"}}`, as the answer or, once a stream has begun, as its last event. Knows no field and no
model.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.call import Call
from predictors.protocol.faults import Fault
from predictors.protocol.http.exchange import Endpoint, EventStream, Exchange, Response
from predictors.protocol.openai.fields import OpenAIBody
from predictors.protocol.registry import Registry
from predictors.protocol.serves import Served

PREFIXES = ("/openai/v1", "/v1")


@dataclass(frozen=True, slots=True)
class Operation:
    """What one POST route does.

    `route` is its address below `/v1`, as errors name it; `decode` makes a checked body of bytes,
    in a worker where they are many; `serves` tells whether a model belongs there; `reply` asks such
    a model.
    """

    name: str  # metric label
    route: str
    decode: Callable[[bytes], OpenAIBody]
    serves: Callable[[Served], bool]
    reply: Callable[[Any, Mapping[str, Any], Call], Awaitable[Response | EventStream]]


def endpoint(registry: Registry, operation: Operation, others: tuple[Operation, ...]) -> Endpoint:
    """The ASGI endpoint of `operation`; `others` are where models of other kinds are sent."""

    async def handle(exchange: Exchange) -> Response | EventStream:
        body = await _read(exchange, registry, operation)
        model = exchange.find(body["model"])
        if not operation.serves(model):
            raise _wrong_kind(model, operation, others)
        exchange.admit(model.name)
        return await operation.reply(model, body, exchange.call)

    return Endpoint(
        handle, registry, protocol="openai", operation=operation.name, body_of=openai_body
    )


def openai_body(fault: Fault) -> bytes:
    """The error body. What is not found on these routes is always the model."""
    if fault.code == "not_found":
        fault = replace(fault, param="model", code="model_not_found")
    return fault.openai_body()


async def _read(exchange: Exchange, registry: Registry, operation: Operation) -> Mapping[str, Any]:
    body = await exchange.decode_body(operation.decode)
    if body.model is not None:
        exchange.tally.model = registry.label(body.model)  # a refused body counts under it too
    return body.checked()


def _wrong_kind(
    model: Served, operation: Operation, others: tuple[Operation, ...]
) -> InvalidRequest:
    there = [other.route for other in others if other.serves(model)]
    hint = f"; POST /v1{there[0]} does" if there else ""
    message = f"POST /v1{operation.route} does not serve model {model.name!r}{hint}"
    return InvalidRequest(message, param="model")
