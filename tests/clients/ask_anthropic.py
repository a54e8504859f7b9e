"""Anthropic's own client: messages, streams, tools, forms, counts, failures."""

from __future__ import annotations

import base64
from typing import Any

import anthropic

from tests.clients import report
from tests.clients.shapes import COUNT_SCHEMA

client = anthropic.Anthropic(
    base_url=report.URL, api_key=report.KEY, timeout=report.TIMEOUT_S, max_retries=0
)
FIELDS: dict[str, Any] = {
    "model": report.MODEL,
    "max_tokens": report.TOKENS,
    "extra_body": {"seed": 1, "temperature": 0},
}
CALLING: dict[str, Any] = FIELDS | {"max_tokens": report.CALL_TOKENS}
TOOL: Any = {"name": "count_shapes", "input_schema": COUNT_SCHEMA, "strict": True}


def asked(question: str = report.QUESTION) -> list[Any]:
    """A picture and a question, in Anthropic's blocks."""
    data = base64.b64encode(report.picture()).decode()
    source = {"type": "base64", "media_type": "image/png", "data": data}
    text = {"type": "text", "text": question}
    return [{"role": "user", "content": [text, {"type": "image", "source": source}]}]


def chat() -> Any:
    said = client.messages.create(messages=asked(), **FIELDS)
    counted = client.messages.count_tokens(model=report.MODEL, messages=asked())
    return {
        "text": said.content[0].text,
        "usage": said.usage.model_dump(),
        "stop": said.stop_reason,
        "counted": counted.input_tokens,
    }


def stream() -> Any:
    with client.messages.stream(messages=asked(), **FIELDS) as events:
        pieces = list(events.text_stream)
        said = events.get_final_message()
    return {
        "text": "".join(pieces),
        "pieces": len(pieces),
        "final": said.content[0].text,
        "usage": said.usage.model_dump(),
        "stop": said.stop_reason,
    }


def streamed_call() -> Any:
    """A call in parts, its result, and the answer to that."""
    choice: Any = {"type": "tool", "name": "count_shapes"}
    messages = asked(report.COUNTING)
    with client.messages.stream(
        messages=messages, tools=[TOOL], tool_choice=choice, **CALLING
    ) as events:
        kinds = {event.type for event in events}
        said = events.get_final_message()
    (call,) = said.content
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "3"}
    turns = [said.to_param(), {"role": "user", "content": [result]}]
    reply = client.messages.create(messages=[*messages, *turns], tools=[TOOL], **FIELDS)
    return {
        "input": call.input,
        "reason": said.stop_reason,
        "events": sorted(kinds),
        "answered": bool(reply.content),
    }


def stopped() -> Any:
    said = client.messages.create(messages=asked(), stop_sequences=["red"], **FIELDS)
    begun = [*asked(), {"role": "assistant", "content": said.content[0].text + "red"}]
    rest = client.messages.create(messages=begun, **FIELDS)
    return {
        "text": said.content[0].text,
        "stop": said.stop_reason,
        "sequence": said.stop_sequence,
        "whole": said.content[0].text + "red" + rest.content[0].text,
    }


def form() -> Any:
    wanted: Any = {"format": {"type": "json_schema", "schema": COUNT_SCHEMA}}
    said = client.messages.create(
        messages=asked(report.LISTING), output_config=wanted, system="Answer in JSON.", **CALLING
    )
    return said.content[0].text


def overflow() -> Any:
    return client.messages.create(messages=[{"role": "user", "content": report.LONG}], **FIELDS).id


def unknown_model() -> Any:
    return client.messages.create(messages=asked(), **FIELDS | {"model": "claude"}).id


def unknown_field() -> Any:
    extra = {"extra_body": {"sed": 1}}
    return client.messages.create(messages=asked(), **FIELDS | extra).id


if __name__ == "__main__":
    report.run(
        {
            "chat": chat,
            "stream": stream,
            "streamed call": streamed_call,
            "stopped": stopped,
            "form": form,
            "overflow": overflow,
            "unknown model": unknown_model,
            "unknown field": unknown_field,
        }
    )
