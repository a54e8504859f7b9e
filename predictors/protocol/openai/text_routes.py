"""The operations that write text, whole or as a stream of events: chats, responses, completions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.requests import Request

from predictors.errors import NotFound
from predictors.protocol.call import Call
from predictors.protocol.faults import Fault
from predictors.protocol.http.responses import EventStream, Response, json_response
from predictors.protocol.openai.chat_body import decode_chat_body
from predictors.protocol.openai.completions_body import decode_completions_body
from predictors.protocol.openai.events import DONE, STREAM_HEADERS, framed
from predictors.protocol.openai.fields import DecodedBody
from predictors.protocol.openai.operations import Operation, openai_body
from predictors.protocol.openai.response_object import failure_events
from predictors.protocol.openai.responses_body import ResponsesBody, decode_responses_body
from predictors.protocol.openai.spelling import respelling, respelt_events
from predictors.protocol.serves import ServesChat, offers
from predictors.protocol.text_body import TextBody

_RESPONSES = "/responses"
NOT_KEPT = "answers are not kept: there is no response of this id, neither to read nor to cancel"


AsStream = Callable[[Any, Call, AsyncIterator[bytes]], EventStream]
"""The response of a checked body, its call, and the events of the answer."""


async def _reply(
    as_stream: AsStream,
    model: ServesChat,
    body: TextBody,
    call: Call,
) -> Response | EventStream:
    if body.stream:
        events = model.chat_stream(body, call)
        return as_stream(body, call, respelt_events(events, body.spelt) if body.spelt else events)
    with respelling(body.spelt):
        return json_response(await model.chat(body, call))


def chat_operation(
    name: str,
    route: str,
    decode: Callable[[bytes], DecodedBody[Any]],
    as_stream: AsStream,
) -> Operation:
    """The operation of a chat model."""
    reply, serves = partial(_reply, as_stream), partial(offers, kind=ServesChat)
    return Operation(name=name, route=route, decode=decode, serves=serves, reply=reply)


def _encode_error(fault: Fault) -> bytes:
    # no `[DONE]` follows: the answer is not complete
    return framed(openai_body(fault))


def _unnamed(body: TextBody, call: Call, events: AsyncIterator[bytes]) -> EventStream:
    """As OpenAI's chats and completions."""
    return EventStream(events, _encode_error, DONE, STREAM_HEADERS, is_direct=True)


CHAT = chat_operation("chat", "/chat/completions", decode_chat_body, _unnamed)
COMPLETIONS = chat_operation("completions", "/completions", decode_completions_body, _unnamed)


# -- responses -------------------------------------------------------------------------------------
class NumberedEvents:
    """The events of a response as they pass, counted for the numbers of those that may follow."""

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        self._events = events
        self.count = 0

    async def items(self) -> AsyncIterator[bytes]:
        async with aclosing(self._events):  # type: ignore[type-var]
            async for each in self._events:
                self.count += each.count(b"\n\n")  # JSON has no line break
                yield each


def _numbered(body: ResponsesBody, call: Call, events: AsyncIterator[bytes]) -> EventStream:
    numbered = NumberedEvents(events)

    def encode_error(fault: Fault) -> bytes:
        return failure_events(body, call, fault, numbered.count)

    # not direct: all events are counted on their way
    return EventStream(numbered.items(), encode_error=encode_error, headers=STREAM_HEADERS)


RESPONSES = chat_operation("responses", _RESPONSES, decode_responses_body, _numbered)
KEPT_RESPONSES = tuple(
    (f"{_RESPONSES}/{{response}}{rest}", methods)
    for rest, methods in (("", ["GET", "DELETE"]), ("/cancel", ["POST"]), ("/input_items", ["GET"]))
)
"""Routes of responses that OpenAI keeps, with their methods."""


async def no_kept_response(request: Request) -> Response:
    raise NotFound(NOT_KEPT)
