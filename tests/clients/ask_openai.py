"""OpenAI's own client: models, chat, streams, pictures in and out, failures."""

from __future__ import annotations

import base64
import json
from typing import Any

import openai
from pydantic import BaseModel

from tests.clients import report
from tests.clients.shapes import COUNT_SCHEMA, Shape

client = openai.OpenAI(base_url=report.base_url(), api_key=report.KEY, timeout=report.TIMEOUT_S)
FIELDS: dict[str, Any] = {
    "model": report.MODEL,
    "max_tokens": report.TOKENS,
    "temperature": 0,
    "seed": 1,
}


def chat() -> Any:
    reply = client.chat.completions.create(messages=report.messages(), **FIELDS)
    return {"text": reply.choices[0].message.content, "usage": reply.usage.model_dump()}


def stream() -> Any:
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(
            messages=report.messages(), stream=True, stream_options=options, **FIELDS
        )
    )
    texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    return {"text": "".join(texts), "usage": chunks[-1].usage.model_dump()}


class Seen(BaseModel):
    shape: Shape
    filled: bool


CALLING: dict[str, Any] = FIELDS | {"max_tokens": report.CALL_TOKENS}
FUNCTION = {"name": "count_shapes", "parameters": COUNT_SCHEMA, "strict": True}
COUNT: Any = {"type": "function", "function": FUNCTION}


def parsed() -> Any:
    reply = client.chat.completions.parse(
        messages=report.messages(), response_format=Seen, **CALLING
    )
    return reply.choices[0].message.parsed.model_dump()


def parsed_call() -> Any:
    tools = [openai.pydantic_function_tool(Seen, name="report_shape")]
    reply = client.chat.completions.parse(
        messages=report.messages(), tools=tools, tool_choice="required", **CALLING
    )
    (call, *_) = reply.choices[0].message.tool_calls
    return call.function.parsed_arguments.model_dump()


def streamed_call() -> Any:
    """A call in parts, its result, and the answer to that."""
    messages = report.messages()
    choice: Any = {"type": "function", "function": {"name": "count_shapes"}}
    kinds = set()
    with client.chat.completions.stream(
        messages=messages, tools=[COUNT], tool_choice=choice, **CALLING
    ) as stream:
        for event in stream:
            kinds.add(event.type)
        said = stream.get_final_completion().choices[0]
    (call,) = said.message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "3"}
    reply = client.chat.completions.create(
        messages=[*messages, said.message.model_dump(), result], tools=[COUNT], **FIELDS
    )
    return {
        "arguments": json.loads(call.function.arguments),
        "reason": said.finish_reason,
        "events": sorted(kind for kind in kinds if kind.startswith("tool_calls")),
        "answered": bool(reply.choices[0].message.content or reply.choices[0].message.tool_calls),
    }


def overflow() -> Any:
    turns = [{"role": "user", "content": report.LONG}]
    return client.chat.completions.create(messages=turns, **FIELDS).model_dump()


def drawing(**more: Any) -> Any:
    reply = client.images.generate(
        model="flux", prompt="a red circle", size="64x64", extra_body={"seed": 3, **more}
    )
    return reply.data[0]


def drawn_file() -> Any:
    return base64.b64decode(drawing().b64_json)[:8].hex()


def drawn_url() -> Any:
    return drawing(response_format="url").url


def drawn_stream() -> Any:
    events = client.images.generate(
        model="flux",
        prompt="a red circle",
        size="64x64",
        stream=True,
        partial_images=2,
        extra_body={"seed": 3, "progress": True},
    )
    found = list(events)
    files = [e.b64_json for e in found if e.type != "image_generation.progress"]
    kinds = sorted({event.type.rpartition(".")[2] for event in found})
    return {"kinds": kinds, "files": len(files), "same": files[-1] == drawing().b64_json}


if __name__ == "__main__":
    report.run(
        {
            "models": lambda: [model.id for model in client.models.list()],
            "chat": chat,
            "stream": stream,
            "overflow": overflow,
            "parsed": parsed,
            "parsed call": parsed_call,
            "streamed call": streamed_call,
            "drawn file": drawn_file,
            "drawn url": drawn_url,
            "drawn stream": drawn_stream,
        }
    )
