"""`POST /v1/chat/completions`: its route and its event stream. The fields of a body are
`openai_chat_body`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from predictors.protocol.call import Call
from predictors.protocol.faults import Fault
from predictors.protocol.http.exchange import EventStream, Response, json_response
from predictors.protocol.openai.chat_body import decode
from predictors.protocol.openai.edge import Operation, openai_body
from predictors.protocol.openai.events import DONE, framed
from predictors.protocol.serves import ServesChat

STREAM_HEADERS = (
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
    ("x-accel-buffering", "no"),  # nginx would hold the events back
)


async def _reply(model: ServesChat, body: Mapping[str, Any], call: Call) -> Response | EventStream:
    if body.get("stream", False):
        events = model.chat_stream(body, call)
        return EventStream(events, last_words=_last_words, closing=DONE, headers=STREAM_HEADERS)
    return json_response(await model.chat(body, call))


def _last_words(fault: Fault) -> bytes:
    """A failure after the first chunk. No `[DONE]` follows: the answer is not complete."""
    return framed(openai_body(fault))


CHAT = Operation(
    name="chat",
    route="/chat/completions",
    decode=decode,
    serves=lambda model: isinstance(model, ServesChat),
    reply=_reply,
)
