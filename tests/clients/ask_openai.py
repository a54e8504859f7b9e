"""OpenAI's own client: models, chat, streams, pictures in and out, failures."""

from __future__ import annotations

import base64
from typing import Any

import openai

from tests.clients import report

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
            "drawn file": drawn_file,
            "drawn url": drawn_url,
            "drawn stream": drawn_stream,
        }
    )
