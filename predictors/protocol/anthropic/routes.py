"""Anthropic's routes: messages, whole or as a stream of events, and their tokens counted.

A failure is `{"type": "error", "error": {"type", "message"}}`: the response's body, or the last
event of a stream that has begun.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.routing import Route

from predictors.protocol.anthropic.messages_body import (
    SPELT,
    MessagesBody,
    decode_count_body,
    decode_messages_body,
)
from predictors.protocol.call import Call
from predictors.protocol.error_formats import ANTHROPIC_ERRORS
from predictors.protocol.faults import Fault
from predictors.protocol.http.responses import EventStream, Response, json_response
from predictors.protocol.openai.events import STREAM_HEADERS
from predictors.protocol.openai.operations import Operation, post_routes
from predictors.protocol.openai.spelling import respelling
from predictors.protocol.openai.text_routes import chat_operation
from predictors.protocol.openai.token_routes import SERVES_TOKENS
from predictors.protocol.openai.tokens_body import TokenizeBody
from predictors.protocol.registry import Registry
from predictors.protocol.serves import ServesTokens


def _error_event(fault: Fault) -> bytes:
    return b"event: error\ndata: %b\n\n" % fault.anthropic_body()


def _as_stream(body: MessagesBody, call: Call, events: AsyncIterator[bytes]) -> EventStream:
    return EventStream(events, _error_event, headers=STREAM_HEADERS, is_direct=True)


async def _reply_count(model: ServesTokens, body: TokenizeBody, call: Call) -> Response:
    with respelling(SPELT):
        counted = await model.tokenize(body, call)
    return json_response({"input_tokens": counted["count"]})


MESSAGES = chat_operation("messages", "/messages", decode_messages_body, _as_stream)
COUNT_TOKENS = Operation(
    name="count_tokens",
    route="/messages/count_tokens",
    decode=decode_count_body,
    serves=SERVES_TOKENS,
    reply=_reply_count,
)


def anthropic_routes(registry: Registry) -> list[Route]:
    every, own = (MESSAGES, COUNT_TOKENS), ANTHROPIC_ERRORS.protocol
    return post_routes(registry, every, ("/v1",), protocol=own, body_of=Fault.anthropic_body)
