"""LangChain's ChatOpenAI: plain, streaming, with a picture in both of its forms, and too long."""

from __future__ import annotations

import base64
from typing import Any

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from tests.clients import report
from tests.clients.shapes import COUNT_SCHEMA, Shape

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


@tool
def count_shapes(shape: Shape) -> int:
    """Counts the shapes of one kind."""
    return len(shape)


caller = chat.model_copy(update={"max_tokens": report.CALL_TOKENS})


def tool_loop() -> Any:
    """A call, the tool's own run of it, and the answer to the result."""
    said = caller.bind_tools([count_shapes], tool_choice="any").invoke([MESSAGE])
    results = [count_shapes.invoke(call) for call in said.tool_calls]
    assert all(isinstance(result, ToolMessage) for result in results)
    reply = caller.bind_tools([count_shapes]).invoke([MESSAGE, said, *results])
    shapes = [call["args"]["shape"] for call in said.tool_calls]
    return {
        "shapes": shapes,
        "results": [int(result.content) for result in results],
        "answered": bool(reply.content or reply.tool_calls),
    }


def streamed_call() -> Any:
    bound = caller.bind_tools([count_shapes], tool_choice="count_shapes")
    chunks = list(bound.stream([MESSAGE]))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return [call["args"]["shape"] for call in whole.tool_calls]


def structured(method: Any) -> Any:
    return caller.with_structured_output(COUNT_SCHEMA, method=method).invoke([MESSAGE])


def json_mode() -> Any:
    """JSON whose form the model chooses, so that it must know how to write some."""
    listing = HumanMessage(
        content=[{"type": "text", "text": report.LISTING}, report.messages()[0]["content"][1]]
    )
    return caller.with_structured_output(COUNT_SCHEMA, method="json_mode").invoke([listing])


if __name__ == "__main__":
    report.run(
        {
            "chat": lambda: answer(MESSAGE),
            "blocks": lambda: answer(BLOCKS),
            "stream": stream,
            "conversation": conversation,
            "batch": lambda: [reply.content for reply in chat.batch([[MESSAGE], [MESSAGE]])],
            "tool loop": tool_loop,
            "streamed call": streamed_call,
            "function_calling": lambda: structured("function_calling"),
            "json_schema": lambda: structured("json_schema"),
            "json_mode": json_mode,
            "overflow": lambda: chat.invoke(report.LONG).content,
        }
    )
