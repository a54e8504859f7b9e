"""The operations that write text, whole or as a stream of events."""

from __future__ import annotations

from predictors.protocol.call import Call
from predictors.protocol.faults import Fault
from predictors.protocol.http.responses import EventStream, Response, json_response
from predictors.protocol.openai.chat_body import decode_chat_body
from predictors.protocol.openai.events import DONE, STREAM_HEADERS, framed
from predictors.protocol.openai.operations import Operation, openai_body
from predictors.protocol.openai.text_body import TextBody
from predictors.protocol.serves import ServesChat


async def _reply(model: ServesChat, body: TextBody, call: Call) -> Response | EventStream:
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
    reply=_reply,
)
