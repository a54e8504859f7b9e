"""The operations that write text, whole or as a stream of events: chats, responses, completions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.requests import Request

from predictors.errors import InvalidRequest, NotFound
from predictors.protocol.call import Call
from predictors.protocol.faults import Fault
from predictors.protocol.http.responses import EventStream, Response, json_response
from predictors.protocol.openai import completions_body, responses_body
from predictors.protocol.openai.chat_body import decode_chat_body
from predictors.protocol.openai.completions_body import decode_completions_body
from predictors.protocol.openai.events import DONE, STREAM_HEADERS, framed
from predictors.protocol.openai.operations import Operation, openai_body
from predictors.protocol.openai.response_object import failure_events
from predictors.protocol.openai.responses_body import ResponsesBody, decode_responses_body
from predictors.protocol.openai.spelling import respell, respelt_events
from predictors.protocol.serves import Served, ServesChat, offers
from predictors.protocol.text_body import TextBody

_RESPONSES = "/responses"
NOT_KEPT = "answers are not kept: there is no response of this id, neither to read nor to cancel"


async def _reply(
    spelt: Mapping[str, str], model: ServesChat, body: TextBody, call: Call
) -> Response | EventStream:
    """As OpenAI's chats and completions; `spelt` are the caller's names of a chat's fields."""
    if body.stream:
        events = model.chat_stream(body, call)
        if spelt:
            events = respelt_events(events, spelt)
        return EventStream(
            events, encode_error=_encode_error, last_event=DONE, headers=STREAM_HEADERS
        )
    return json_response(await _whole(spelt, model, body, call))


async def _whole(
    spelt: Mapping[str, str], model: ServesChat, body: TextBody, call: Call
) -> dict[str, Any]:
    try:
        return await model.chat(body, call)
    except InvalidRequest as error:
        respell(error, spelt)
        raise


def _encode_error(fault: Fault) -> bytes:
    # no `[DONE]` follows: the answer is not complete
    return framed(openai_body(fault))


def _serves_chat(model: Served) -> bool:
    return offers(model, ServesChat)


CHAT = Operation(
    name="chat",
    route="/chat/completions",
    decode=decode_chat_body,
    serves=_serves_chat,
    reply=partial(_reply, {}),
)
COMPLETIONS = Operation(
    name="completions",
    route="/completions",
    decode=decode_completions_body,
    serves=_serves_chat,
    reply=partial(_reply, completions_body.SPELT),
)


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


async def _reply_response(
    model: ServesChat, body: ResponsesBody, call: Call
) -> Response | EventStream:
    spelt = responses_body.SPELT
    if not body.stream:
        return json_response(await _whole(spelt, model, body, call))
    numbered = NumberedEvents(respelt_events(model.chat_stream(body, call), spelt))

    def encode_error(fault: Fault) -> bytes:
        return failure_events(body, call, fault, numbered.count)

    return EventStream(numbered.items(), encode_error=encode_error, headers=STREAM_HEADERS)


RESPONSES = Operation(
    name="responses",
    route=_RESPONSES,
    decode=decode_responses_body,
    serves=_serves_chat,
    reply=_reply_response,
)
KEPT_RESPONSES = tuple(
    (f"{_RESPONSES}/{{response}}{rest}", methods)
    for rest, methods in (("", ["GET", "DELETE"]), ("/cancel", ["POST"]), ("/input_items", ["GET"]))
)
"""Routes of responses that OpenAI keeps, with their methods."""


async def no_kept_response(request: Request) -> Response:
    raise NotFound(NOT_KEPT)
