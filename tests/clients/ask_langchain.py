"""LangChain's ChatOpenAI: plain, streaming, with a picture in both of its forms, and too long."""

from __future__ import annotations

import base64
from typing import Any

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

from tests.clients import report

chat = ChatOpenAI(
    model=report.MODEL,
    base_url=report.base_url(),
    api_key=report.KEY,
    max_tokens=report.TOKENS,
    temperature=0,
    seed=1,
    timeout=report.TIMEOUT_S,
)
MESSAGE = HumanMessage(content=report.messages()[0]["content"])
BLOCKS = HumanMessage(
    content=[
        {"type": "text", "text": report.QUESTION},
        {
            "type": "image",
            "base64": base64.b64encode(report.picture()).decode(),
            "mime_type": "image/png",
        },
    ]
)


def answer(message: HumanMessage) -> Any:
    reply = chat.invoke([message])
    return {"text": reply.content, "usage": dict(reply.usage_metadata)}


def stream() -> Any:
    chunks = list(chat.stream([MESSAGE], stream_usage=True))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return {
        "text": whole.content,
        "usage": dict(whole.usage_metadata),
        "pieces": sum(bool(chunk.content) for chunk in chunks),
    }


def conversation() -> Any:
    first = chat.invoke([MESSAGE])
    second = chat.invoke([MESSAGE, first, HumanMessage(content="And the colour?")])
    return bool(second.content)


if __name__ == "__main__":
    report.run(
        {
            "chat": lambda: answer(MESSAGE),
            "blocks": lambda: answer(BLOCKS),
            "stream": stream,
            "conversation": conversation,
            "batch": lambda: [reply.content for reply in chat.batch([[MESSAGE], [MESSAGE]])],
            "overflow": lambda: chat.invoke(report.LONG).content,
        }
    )
